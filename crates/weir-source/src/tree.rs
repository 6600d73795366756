//! A document as read, with the line of every value.
//!
//! Objects are taken out of it one by one with serde, so that one that is wrong does not spoil
//! its neighbours, and an error knows line and path: `line 12: spec.ingress[0].ports[1].port: ...`.
//! Types are as strict as the API's: a number is no string.

use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeOwned, Deserializer, IntoDeserializer, Unexpected, Visitor};

/// How the annotations begin that say something to Weir.
pub(crate) const OWN_ANNOTATIONS: &str = "weir.dev/";

/// A value and its line.
#[derive(Debug, Clone, PartialEq)]
pub struct Tree {
    /// Counted from 1; 0 where there is none (objects from the API server).
    pub line: u64,
    /// What it is.
    pub value: Value,
}

/// The values of JSON, in the order of the text.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Any other number.
    Float(f64),
    /// A text.
    Text(String),
    /// A sequence.
    Seq(Vec<Tree>),
    /// A mapping.
    Map(Vec<(String, Tree)>),
}

impl Tree {
    /// The value under a key of a mapping.
    pub fn get(&self, key: &str) -> Option<&Tree> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|(k, _)| k == key).map(|(_, tree)| tree),
            _ => None,
        }
    }

    /// The text under a key of a mapping.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.get(key).map(|tree| &tree.value) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// Deserialises the value.
    ///
    /// # Errors
    /// With line and path of the value that has the wrong type.
    pub fn to<T: DeserializeOwned>(&self) -> Result<T, Error> {
        T::deserialize(self).map_err(|error| error.on(self.line))
    }

    /// Deserialises the value under a key; absent and `null` are the default.
    ///
    /// # Errors
    /// As [`Tree::to`], the path beginning with the key.
    pub fn field<T: DeserializeOwned + Default>(&self, key: &str) -> Result<T, Error> {
        match self.get(key) {
            None | Some(Tree { value: Value::Null, .. }) => Ok(T::default()),
            Some(tree) => T::deserialize(tree).map_err(|error| error.on(tree.line).under(key)),
        }
    }
}

impl From<serde_json::Value> for Tree {
    fn from(json: serde_json::Value) -> Self {
        let value = match json {
            serde_json::Value::Null => Value::Null,
            serde_json::Value::Bool(b) => Value::Bool(b),
            serde_json::Value::Number(n) => {
                n.as_i64().map_or_else(|| Value::Float(n.as_f64().unwrap_or(f64::NAN)), Value::Int)
            }
            serde_json::Value::String(s) => Value::Text(s),
            serde_json::Value::Array(items) => Value::Seq(items.into_iter().map(Tree::from).collect()),
            serde_json::Value::Object(entries) => {
                Value::Map(entries.into_iter().map(|(key, value)| (key, value.into())).collect())
            }
        };
        Tree { line: 0, value }
    }
}

/// A value of the wrong type, or one that is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// The line; 0 if none is known.
    pub line: u64,
    /// Where in the object, as `spec.ingress[0].ports[1].port`.
    pub path: String,
    /// What is wrong.
    pub message: String,
}

impl Error {
    /// The innermost line is the most precise.
    fn on(mut self, line: u64) -> Self {
        if self.line == 0 {
            self.line = line;
        }
        self
    }

    /// Puts a key in front of the path.
    pub(crate) fn under(mut self, key: &str) -> Self {
        let dot = if self.path.is_empty() || self.path.starts_with('[') { "" } else { "." };
        self.path = format!("{key}{dot}{}", self.path);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Error { line: 0, path: String::new(), message: message.to_string() }
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let found = match found {
            Unexpected::Unit => "null".to_owned(),
            Unexpected::Map => "a mapping".to_owned(),
            Unexpected::Seq => "a sequence".to_owned(),
            Unexpected::Str(text) => format!("the text {text:?}"),
            Unexpected::Signed(n) => format!("the number {n}"),
            Unexpected::Bool(b) => format!("the boolean {b} (a text needs quotes)"),
            other => other.to_string(),
        };
        let expected = match expected.to_string().as_str() {
            "i64" | "u16" | "u64" => "a whole number".to_owned(),
            other => other.to_owned(),
        };
        Self::custom(format_args!("found {found}, expected {expected}"))
    }
}

impl<'de> Deserializer<'de> for &'de Tree {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(b) => visitor.visit_bool(*b),
            Value::Int(n) => visitor.visit_i64(*n),
            Value::Float(n) => visitor.visit_f64(*n),
            Value::Text(text) => visitor.visit_borrowed_str(text),
            Value::Seq(items) => visitor.visit_seq(SeqAccess { items: items.iter().enumerate() }),
            Value::Map(entries) => visitor.visit_map(MapAccess { entries: entries.iter(), value: None }),
        }
    }

    /// Also the forms of YAML 1.1, which kubectl understands and which are read as texts.
    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let Value::Text(text) = &self.value else { return self.deserialize_any(visitor) };
        match text.to_ascii_lowercase().as_str() {
            "y" | "yes" | "on" => visitor.visit_bool(true),
            "n" | "no" | "off" => visitor.visit_bool(false),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        unit unit_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

struct SeqAccess<'de> {
    items: std::iter::Enumerate<std::slice::Iter<'de, Tree>>,
}

impl<'de> de::SeqAccess<'de> for SeqAccess<'de> {
    type Error = Error;

    fn next_element_seed<T: de::DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let Some((index, tree)) = self.items.next() else { return Ok(None) };
        seed.deserialize(tree).map(Some).map_err(|error| error.on(tree.line).under(&format!("[{index}]")))
    }
}

struct MapAccess<'de> {
    entries: std::slice::Iter<'de, (String, Tree)>,
    value: Option<&'de (String, Tree)>,
}

impl<'de> de::MapAccess<'de> for MapAccess<'de> {
    type Error = Error;

    fn next_key_seed<K: de::DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        self.value = self.entries.next();
        let Some((key, _)) = self.value else { return Ok(None) };
        let key: StrDeserializer<'_, Error> = key.as_str().into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<V: de::DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let Some((key, tree)) = self.value.take() else {
            return Err(de::Error::custom("a value was asked for before its key"));
        };
        seed.deserialize(tree).map_err(|error| error.on(tree.line).under(key))
    }
}
