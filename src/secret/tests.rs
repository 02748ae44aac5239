//! Tables of places and what is done in them.
