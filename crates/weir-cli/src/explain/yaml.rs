//! JSON values as YAML, block by block.

use std::fmt::Write;

use serde_json::Value;

/// A document.
pub(crate) fn text(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => block(&mut out, value, 0),
        Value::Array(list) if !list.is_empty() => block(&mut out, value, 0),
        scalar => {
            let _ = writeln!(out, "{scalar}");
        }
    }
    out
}

fn is_block(value: &Value) -> bool {
    match value {
        Value::Object(map) => !map.is_empty(),
        Value::Array(list) => !list.is_empty(),
        _ => false,
    }
}

fn block(out: &mut String, value: &Value, indent: usize) {
    let pad = " ".repeat(indent);
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let key = word(key);
                if is_block(value) {
                    let _ = writeln!(out, "{pad}{key}:");
                    // the items of a list stand below its key
                    block(out, value, if value.is_array() { indent } else { indent + 2 });
                } else {
                    let _ = writeln!(out, "{pad}{key}: {}", scalar(value));
                }
            }
        }
        Value::Array(list) => {
            for value in list {
                if is_block(value) {
                    let mut inner = String::new();
                    block(&mut inner, value, indent + 2);
                    let _ = write!(out, "{pad}- {}", inner.get(indent + 2..).unwrap_or_default());
                } else {
                    let _ = writeln!(out, "{pad}- {}", scalar(value));
                }
            }
        }
        _ => {}
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => word(text),
        other => other.to_string(),
    }
}

/// Bare where nothing can be mistaken, else as a JSON string, which YAML reads as such.
fn word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '/' | '.');
    let keyword = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"]
        .contains(&text.to_ascii_lowercase().as_str());
    let bare = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(plain)
        && !keyword
        // 1e3 is a number, and so is what begins like one; letters do not, but for these
        && !text.eq_ignore_ascii_case("nan")
        && !text.eq_ignore_ascii_case("inf");
    if bare { text.to_owned() } else { Value::String(text.to_owned()).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn blocks() {
        let value = json!({"a": [], "b": [{"c": 1, "d": ["x y", "no", "ok"]}, [1, 2], "z"], "e": {}, "f: g": {"h": null}});
        let expected = "\
a: []
b:
- c: 1
  d:
  - \"x y\"
  - \"no\"
  - ok
- - 1
  - 2
- z
e: {}
\"f: g\":
  h: null
";
        assert_eq!(text(&value), expected);
        assert_eq!(text(&json!([])), "[]\n");
    }
}
