//! Enums that are shown by name, and types that are shown as the text that they hold.

/// Defines an enum whose values are named as in the code, or by the text after `=`.
macro_rules! named {
    ($(#[$of_enum:meta])* pub enum $name:ident { $($(#[$of_value:meta])* $value:ident $(= $text:literal)?,)+ }) => {
        $(#[$of_enum])*
        pub enum $name {
            $($(#[$of_value])* $value,)+
        }

        impl $name {
            /// Every value.
            pub const ALL: [Self; [$(Self::$value),+].len()] = [$(Self::$value),+];

            /// The name, as it stands in specs, statuses, Events, metric labels and logs.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$value => named!(@name $value $($text)?),)+
                }
            }
        }
    };
    (@name $value:ident) => { stringify!($value) };
    (@name $value:ident $text:literal) => { $text };
}

pub(crate) use named;

/// Lets types that hold a valid text show it.
macro_rules! shown_as_text {
    ($($name:ident),+) => {$(
        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }
    )+};
}

pub(crate) use shown_as_text;
