//! The documents of one text with the line of every value, for those who show a place to a person.

use super::text;
use crate::Kind;
use crate::convert::{Document, classify};
use crate::tree::Tree;

/// All objects of a text, those of Lists one by one, and the kinds of those that matter to policy. What
/// cannot be read is left out: [`read`](super::read) has told of it.
pub fn documents(text: &[u8]) -> Vec<(Option<Kind>, Tree)> {
    let mut all = Vec::new();
    for tree in text::read(text).documents {
        let default = match classify(&tree, None) {
            Document::List(_, default) => default,
            Document::Object(kind) => {
                all.push((Some(kind), tree));
                continue;
            }
            _ => {
                all.push((None, tree));
                continue;
            }
        };
        for item in items(tree) {
            let kind = match classify(&item, default) {
                Document::Object(kind) => Some(kind),
                _ => None,
            };
            all.push((kind, item));
        }
    }
    all
}

fn items(list: Tree) -> Vec<Tree> {
    use crate::tree::Value;
    let Value::Map(entries) = list.value else { return Vec::new() };
    let items = entries.into_iter().find(|(key, _)| key == "items");
    match items.map(|(_, items)| items.value) {
        Some(Value::Seq(items)) => items,
        _ => Vec::new(),
    }
}
