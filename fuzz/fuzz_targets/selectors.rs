//! A line of JSON with labels, and one with a selector: reading and matching them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weir_compiler::object::{LabelSelector, Labels};
use weir_compiler::selector::Selector;

fuzz_target!(|text: &str| {
    let (labels, selector) = text.split_once('\n').unwrap_or(("{}", text));
    let labels: Labels = serde_json::from_str(labels).unwrap_or_default();
    let Ok(written) = serde_json::from_str::<LabelSelector>(selector) else { return };
    let (read, problems) = Selector::read(&written);
    let _ = (read.anchor(), read.to_string());
    if !problems.is_empty() {
        return;
    }
    let literally = written.match_labels.iter().all(|(k, v)| labels.get(k) == Some(v))
        && written.match_expressions.iter().all(|r| {
            let listed = labels.get(&r.key).is_some_and(|v| r.values.contains(v));
            match r.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => labels.contains_key(&r.key),
                "DoesNotExist" => !labels.contains_key(&r.key),
                other => panic!("{other} was not reported"),
            }
        });
    assert_eq!(read.matches(&labels), literally);
});
