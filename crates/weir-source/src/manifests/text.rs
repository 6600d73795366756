//! From the text of a file to documents, YAML and JSON alike (JSON is YAML, and this way has lines too).
//!
//! What policy never looks at (managed fields, annotations of others, volumes, environments) is passed over
//! while reading, so that a List of ten thousand pods does not stay in memory whole. Of the spec
//! every key is kept, because a NetworkPolicy must show its unknown ones (N101).

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, IgnoredAny, Visitor};
use serde_saphyr::Spanned;
use serde_saphyr::options::NonFiniteFloatPolicy;

use crate::tree::{OWN_ANNOTATIONS, Tree, Value};

/// The documents of a text, as far as it can be parsed, and where and why it cannot.
pub(crate) struct Text {
    pub(crate) documents: Vec<Tree>,
    pub(crate) errors: Vec<(u64, String)>,
}

/// How a snapshot begins: a text in which most documents are JSON in one line, `--- {...}`.
pub(crate) const SNAPSHOT: &str = "# weir snapshot";

/// Reads all documents of a text; empty ones are passed over.
pub(crate) fn read(text: &[u8]) -> Text {
    let mut documents = Vec::new();
    let errors = each(text, &mut |tree| documents.push(tree));
    Text { documents, errors }
}

/// Hands out each document of a text as soon as it is read; returns where and why it cannot be.
pub(crate) fn each(text: &[u8], document: &mut dyn FnMut(Tree)) -> Vec<(u64, String)> {
    if text.starts_with(SNAPSHOT.as_bytes()) {
        read_snapshot(text, document)
    } else {
        read_yaml(text, 0, document)
    }
}

/// The same as [`read_yaml`], some twenty times faster: lines that are a document of JSON are read as such, and
/// what is between them as YAML.
fn read_snapshot(text: &[u8], document: &mut dyn FnMut(Tree)) -> Vec<(u64, String)> {
    let mut errors = Vec::new();
    let mut lines = text.split_inclusive(|b| *b == b'\n').peekable();
    // of what is YAML: from where, and how many lines are before
    let (mut start, mut before) = (0, 0);
    let (mut at, mut number) = (0, 0);
    while let Some(line) = lines.next() {
        let whole = lines.peek().is_none_or(|next| next.starts_with(b"---"));
        let json = line.strip_prefix(b"--- ").filter(|json| whole && json.starts_with(b"{"));
        if let Some(tree) = json.and_then(|json| from_json(json, number + 1)) {
            if start < at {
                errors.extend(read_yaml(&text[start..at], before, document));
            }
            document(tree);
            (start, before) = (at + line.len(), number + 1);
        }
        at += line.len();
        number += 1;
    }
    if start < at {
        errors.extend(read_yaml(&text[start..at], before, document));
    }
    errors
}

/// A document of JSON in one line.
fn from_json(json: &[u8], line: u64) -> Option<Tree> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let tree = de::DeserializeSeed::deserialize(JsonAt(line), &mut deserializer).ok()?;
    deserializer.end().ok()?;
    Some(tree)
}

/// A value of which all is in one line.
#[derive(Clone, Copy)]
struct JsonAt(u64);

impl<'de> de::DeserializeSeed<'de> for JsonAt {
    type Value = Tree;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree, D::Error> {
        Ok(Tree { line: self.0, value: deserializer.deserialize_any(self)? })
    }
}

impl<'de> Visitor<'de> for JsonAt {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, b: bool) -> Result<Value, E> {
        Ok(Value::Bool(b))
    }

    fn visit_i64<E>(self, n: i64) -> Result<Value, E> {
        Ok(Value::Int(n))
    }

    fn visit_u64<E>(self, n: u64) -> Result<Value, E> {
        Ok(i64::try_from(n).map_or_else(|_| Value::Text(n.to_string()), Value::Int))
    }

    fn visit_f64<E>(self, n: f64) -> Result<Value, E> {
        Ok(Value::Float(n))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(Value::Text(text))
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(self)? {
            items.push(item);
        }
        Ok(Value::Seq(items))
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries: Vec<(String, Tree)> = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            // YAML refuses it, and has the better message
            if entries.iter().any(|(other, _)| *other == key) {
                return Err(de::Error::custom("a key twice"));
            }
            entries.push((key, map.next_value_seed(self)?));
        }
        Ok(Value::Map(entries))
    }
}

/// Counts lines from further up.
fn shift(tree: &mut Tree, lines: u64) {
    tree.line += lines;
    match &mut tree.value {
        Value::Seq(items) => items.iter_mut().for_each(|item| shift(item, lines)),
        Value::Map(entries) => entries.iter_mut().for_each(|(_, value)| shift(value, lines)),
        _ => {}
    }
}

/// Documents of YAML, of a text before which there are so many lines.
fn read_yaml(text: &[u8], before: u64, document: &mut dyn FnMut(Tree)) -> Vec<(u64, String)> {
    // The library guards against inputs that grow without bound. Aliases are what makes a text
    // grow, and their limits stay; the others only have to hold a large cluster in one file.
    let budget = serde_saphyr::budget! {
        max_reader_input_bytes: None,
        max_events: 1_000_000_000,
        max_nodes: 1_000_000_000,
        max_documents: 10_000_000,
        max_total_scalar_bytes: 4 << 30,
        max_total_comment_bytes: 1 << 30,
        max_depth: 200,
    };
    let options = serde_saphyr::options! {
        budget: budget,
        emit_comments: false,
        with_snippet: false,
        // A namespace may be called `n`, which YAML 1.1 takes for "no". What wants a boolean
        // still understands the old forms (see `Tree`).
        strict_booleans: true,
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
    };
    let mut text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let mut errors = Vec::new();
    for found in serde_saphyr::read_with_options::<_, Spanned<Node<OBJECT>>>(&mut text, options) {
        match found {
            Ok(node) => {
                let mut tree = node.into_tree();
                if before > 0 {
                    shift(&mut tree, before);
                }
                document(tree);
            }
            Err(error) => {
                let line = error.location().map_or(0, |location| location.line());
                errors.push((line + before, reason(&error)));
            }
        }
    }
    errors
}

/// The library's text without its own account of the place, which is told apart.
fn reason(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    let line = text.lines().next().unwrap_or_default();
    line.split(" at line ").next().unwrap_or(line).trim_end_matches(['.', ',', ':']).to_owned()
}

type Level = u8;
const OBJECT: Level = 0;
const ITEMS: Level = 1;
const META: Level = 2;
const SPEC: Level = 3;
const STATUS: Level = 4;
const CONTAINERS: Level = 5;
const CONTAINER: Level = 6;
const ANY: Level = 7;
const ANNOTATIONS: Level = 8;

/// What happens to the value of a key.
enum Fate {
    Keep(Level),
    /// Passed over together with its key.
    Skip,
    /// Passed over, but the key stays.
    KeyOnly,
}

fn fate(level: Level, key: &str) -> Fate {
    use Fate::{Keep, KeyOnly, Skip};
    match (level, key) {
        (OBJECT, "apiVersion" | "kind") => Keep(ANY),
        (OBJECT, "items") => Keep(ITEMS),
        (OBJECT, "metadata") => Keep(META),
        (OBJECT, "spec") => Keep(SPEC),
        (OBJECT, "status") => Keep(STATUS),
        // of an EndpointSlice
        (OBJECT, "endpoints" | "ports" | "addressType") => Keep(ANY),
        // pods in pods' makers
        (SPEC, "template" | "jobTemplate") => Keep(OBJECT),
        (META, "annotations") => Keep(ANNOTATIONS),
        (ANNOTATIONS, key) if key.starts_with(OWN_ANNOTATIONS) => Keep(ANY),
        (
            META,
            "name" | "namespace" | "uid" | "labels" | "creationTimestamp" | "deletionTimestamp"
            | "ownerReferences",
        ) => Keep(ANY),
        (STATUS, "phase" | "podIP" | "podIPs" | "conditions" | "addresses" | "nodeInfo") => Keep(ANY),
        (SPEC, "containers" | "initContainers") => Keep(CONTAINERS),
        (
            SPEC,
            "ephemeralContainers" | "volumes" | "tolerations" | "affinity" | "topologySpreadConstraints",
        ) => KeyOnly,
        (SPEC | ITEMS | CONTAINERS | ANY, _) => Keep(ANY),
        (CONTAINER, "restartPolicy" | "ports") => Keep(ANY),
        _ => Skip,
    }
}

/// A value at a level of an object.
struct Node<const LEVEL: Level>(Value);

trait IntoTree {
    fn into_tree(self) -> Tree;
}

impl<const LEVEL: Level> IntoTree for Spanned<Node<LEVEL>> {
    fn into_tree(self) -> Tree {
        Tree { line: self.defined.line(), value: self.value.0 }
    }
}

impl<'de, const LEVEL: Level> Deserialize<'de> for Node<LEVEL> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor::<LEVEL>).map(Node)
    }
}

struct NodeVisitor<const LEVEL: Level>;

impl<'de, const LEVEL: Level> Visitor<'de> for NodeVisitor<LEVEL> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, b: bool) -> Result<Value, E> {
        Ok(Value::Bool(b))
    }

    fn visit_i64<E>(self, n: i64) -> Result<Value, E> {
        Ok(Value::Int(n))
    }

    fn visit_u64<E>(self, n: u64) -> Result<Value, E> {
        Ok(i64::try_from(n).map_or_else(|_| Value::Text(n.to_string()), Value::Int))
    }

    fn visit_i128<E>(self, n: i128) -> Result<Value, E> {
        Ok(i64::try_from(n).map_or_else(|_| Value::Text(n.to_string()), Value::Int))
    }

    fn visit_u128<E>(self, n: u128) -> Result<Value, E> {
        Ok(i64::try_from(n).map_or_else(|_| Value::Text(n.to_string()), Value::Int))
    }

    fn visit_f64<E>(self, n: f64) -> Result<Value, E> {
        Ok(Value::Float(n))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(Value::Text(text))
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        match LEVEL {
            ITEMS => push_all::<OBJECT, A>(&mut items, &mut seq)?,
            CONTAINERS => push_all::<CONTAINER, A>(&mut items, &mut seq)?,
            _ => push_all::<ANY, A>(&mut items, &mut seq)?,
        }
        Ok(Value::Seq(items))
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(Spanned { value: key, defined, .. }) = map.next_key::<Spanned<String>>()? {
            let tree = match fate(LEVEL, &key) {
                Fate::Skip => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
                Fate::KeyOnly => {
                    map.next_value::<IgnoredAny>()?;
                    Tree { line: defined.line(), value: Value::Null }
                }
                Fate::Keep(OBJECT) => map.next_value::<Spanned<Node<OBJECT>>>()?.into_tree(),
                Fate::Keep(ITEMS) => map.next_value::<Spanned<Node<ITEMS>>>()?.into_tree(),
                Fate::Keep(META) => map.next_value::<Spanned<Node<META>>>()?.into_tree(),
                Fate::Keep(ANNOTATIONS) => map.next_value::<Spanned<Node<ANNOTATIONS>>>()?.into_tree(),
                Fate::Keep(SPEC) => map.next_value::<Spanned<Node<SPEC>>>()?.into_tree(),
                Fate::Keep(STATUS) => map.next_value::<Spanned<Node<STATUS>>>()?.into_tree(),
                Fate::Keep(CONTAINERS) => map.next_value::<Spanned<Node<CONTAINERS>>>()?.into_tree(),
                Fate::Keep(_) => map.next_value::<Spanned<Node<ANY>>>()?.into_tree(),
            };
            entries.push((key, tree));
        }
        Ok(Value::Map(entries))
    }
}

fn push_all<'de, const LEVEL: Level, A: de::SeqAccess<'de>>(
    items: &mut Vec<Tree>,
    seq: &mut A,
) -> Result<(), A::Error> {
    while let Some(node) = seq.next_element::<Spanned<Node<LEVEL>>>()? {
        items.push(node.into_tree());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_values() {
        let read = read(b"# head\n\nkind: Pod\nmetadata:\n  name: a\n  annotations: {x: y}\n---\n\n---\nkind: [1, 2.5, true, ~, \"x\"]\n");
        assert_eq!(read.errors, []);
        assert_eq!(read.documents.len(), 2);
        assert_eq!(read.documents[0].line, 3);
        let name = read.documents[0].get("metadata").and_then(|m| m.get("name")).expect("name");
        assert_eq!((name.line, &name.value), (5, &Value::Text("a".into())));
        assert_eq!(
            read.documents[0].get("metadata").and_then(|m| m.get("annotations")).map(|a| a.value.clone()),
            Some(Value::Map(Vec::new()))
        );
        let Some(Value::Seq(items)) = read.documents[1].get("kind").map(|k| &k.value) else {
            panic!("no sequence")
        };
        let values: Vec<_> = items.iter().map(|item| item.value.clone()).collect();
        assert_eq!(
            values,
            [Value::Int(1), Value::Float(2.5), Value::Bool(true), Value::Null, Value::Text("x".into())]
        );
        assert_eq!(read.documents[1].line, 10);
    }

    #[test]
    fn json_with_escapes_and_tabs() {
        let read = read(b"{\n\t\"kind\": \"List\",\n\t\"metadata\": {\"annotations\": {\"a\": \"\\ud83d\\ude00 \\u003c\\/ \\\"\"}},\n\t\"items\": [\n\t\t{\"kind\": \"Pod\", \"metadata\": {\"name\": \"p\", \"labels\": {\"e\": \"\\u00e9\"}}}\n\t]\n}\n");
        assert_eq!(read.errors, []);
        let Some(Value::Seq(items)) = read.documents[0].get("items").map(|k| &k.value) else {
            panic!("no items")
        };
        assert_eq!(items[0].line, 5);
        let labels = items[0].get("metadata").and_then(|m| m.get("labels")).expect("labels");
        assert_eq!(labels.text("e"), Some("\u{e9}"));
    }

    #[test]
    fn the_rest_of_a_broken_text_is_told_with_its_line() {
        let read = read(b"kind: Pod\n---\nkind: Pod\nmetadata: {name: [}\n");
        assert_eq!(read.documents.len(), 1);
        assert_eq!(read.errors.len(), 1);
        assert_eq!(read.errors[0].0, 4);
        assert!(!read.errors[0].1.is_empty());
    }

    #[test]
    fn a_snapshot_says_what_the_same_yaml_says() {
        let text = "# weir snapshot\n--- {\"kind\": \"Pod\", \"spec\": [1, {\"a\": null}]}\n---\nkind:\n  x: y\n\
            --- {\"kind\": 1}\n--- {\"kind\": 2,\n \"b\": 3}\n---\na: |\n  text\n--- {\"kind\": 4}\n--- {\"kind\": [}\n";
        let snapshot = read(text.as_bytes());
        let mut yaml = Vec::new();
        let errors = read_yaml(text.as_bytes(), 0, &mut |tree| yaml.push(tree));
        assert_eq!(snapshot.documents, yaml);
        assert_eq!(snapshot.documents.len(), 6);
        assert_eq!(snapshot.errors.len(), 1);
        assert_eq!(snapshot.errors[0].0, errors[0].0);
        let twice = read(b"# weir snapshot\n--- {\"kind\": 1, \"kind\": 2}\n");
        assert_eq!((twice.documents.len(), twice.errors.len(), twice.errors[0].0), (0, 1, 2));
    }

    #[test]
    fn a_key_twice_is_an_error() {
        let read = read(b"kind: Pod\nmetadata:\n  name: a\n  name: b\n");
        assert_eq!(read.documents.len(), 0);
        assert_eq!(read.errors[0].0, 4);
        assert!(read.errors[0].1.contains("uplicate"), "{}", read.errors[0].1);
    }
}
