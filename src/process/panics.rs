//! Reports panics: the location, and the message only if it is a literal of the source code.

use std::any::Any;
use std::io::Write;
use std::panic::PanicHookInfo;

/// A message that is formatted at run time may quote secret data: a failed slice quotes its text, and an unexpected error is shown
/// with all its fields.
const WITHHELD: &str = "(the message is not shown because it may contain a token)";

/// Installs the hook. It writes to the log or, if that shows no errors, to standard error.
pub fn tell_without_data() {
    std::panic::set_hook(Box::new(tell));
}

fn tell(info: &PanicHookInfo<'_>) {
    let place = info.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
    let why = literal(info.payload()).unwrap_or(WITHHELD);
    if tracing::enabled!(tracing::Level::ERROR) {
        tracing::error!(%place, why, "panicked");
    } else {
        // Ignored if standard error is closed.
        let _ = writeln!(std::io::stderr(), "ecr-credential-operator: panicked at {place}: {why}");
    }
}

/// The message, if it is a literal; a formatted message is a `String`.
fn literal(payload: &(dyn Any + Send)) -> Option<&'static str> {
    payload.downcast_ref::<&'static str>().copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::catch_unwind;

    fn cut(text: &str) -> &str {
        &text[..9]
    }

    fn refused(text: &str) -> Result<u8, &str> {
        Err(text)
    }

    #[test]
    fn only_what_the_program_text_says_is_told() {
        let password = "hunter2 é hunter2";
        let told = [
            catch_unwind(|| assert!(!cut(password).is_empty())),
            catch_unwind(|| assert!(refused(password).unwrap() > 0)),
            catch_unwind(|| panic!("{password}")),
            catch_unwind(|| panic!("a fixed text")),
        ];
        let told = told.map(|ended| literal(&*ended.unwrap_err()).unwrap_or(WITHHELD));
        assert_eq!(told, [WITHHELD, WITHHELD, WITHHELD, "a fixed text"]);
    }
}
