//! The surroundings themselves: the control plane is real, the proxy hurts, and the recorder finds what is wrong.

mod control_plane_is_real;
mod identities_are_lent_and_judged;
mod proxy_sees_and_hurts_requests;
mod recorder_judges_real_runs;
mod webhook_decides_about_requests;
