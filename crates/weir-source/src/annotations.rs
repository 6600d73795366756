//! Annotations of Weir's, of which no others are kept.

use crate::tree::{Error, Tree, Value};

/// Of a namespace: which new connections of its pods that policies allow are told of.
pub const LOG_ALLOWED: &str = "weir.dev/log-allowed";

/// The most connections of which one is told.
const MOST: u32 = 65_536;

/// What the annotation of a namespace says: 0 for none, 1 for all, N for one of N.
///
/// # Errors
/// It says something else.
pub fn log_allowed(text: &str) -> Result<u32, String> {
    let one_of = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|n| digits && (2..=MOST).contains(n))
    };
    match text {
        "true" => return Ok(1),
        "false" => return Ok(0),
        _ => {}
    }
    text.strip_prefix("1/").and_then(one_of).ok_or_else(|| {
        format!(
            "{text:?} is neither \"true\" (each new connection) nor \"1/N\" with N from 2 to {MOST} (one of N): \
             allowed connections of this namespace are not logged"
        )
    })
}

/// Of a namespace's metadata, as it was written: the annotation, or what is wrong with it.
pub(crate) fn of(metadata: Option<&Tree>) -> Result<u32, Error> {
    let Some(tree) = metadata.and_then(|meta| meta.get("annotations")?.get(LOG_ALLOWED)) else {
        return Ok(0);
    };
    match &tree.value {
        Value::Null => Ok(0),
        Value::Text(text) => log_allowed(text).map_err(|message| wrong(tree.line, message)),
        _ => {
            let message = "the value of an annotation is a text: write \"true\" or \"1/100\", in quotes; allowed \
                           connections of this namespace are not logged";
            Err(wrong(tree.line, message.to_owned()))
        }
    }
}

pub(crate) fn wrong(line: u64, message: String) -> Error {
    Error { line, path: format!("metadata.annotations[{LOG_ALLOWED}]"), message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_none_or_one_of_so_many() {
        for (text, n) in [("true", 1), ("false", 0), ("1/2", 2), ("1/100", 100), ("1/65536", 65_536)] {
            assert_eq!(log_allowed(text), Ok(n), "{text}");
        }
        for text in
            ["", "yes", "True", "1", "100", "1/1", "1/0", "1/65537", "2/4", "1/+5", "1/ 5", "1/-5", "1/"]
        {
            assert!(log_allowed(text).is_err_and(|why| why.contains("not logged")), "{text}");
        }
    }
}
