//! What a source has to complain about, and where.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::Id;

/// A line of a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file, as its path was given or found.
    pub file: Arc<Path>,
    /// Counted from 1; 0: the file as a whole.
    pub line: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}", self.file.display()),
            line => write!(f, "{}:{line}", self.file.display()),
        }
    }
}

/// Something that a person has to look at. Prints as `file:line: object: reason`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where, if it is about a file.
    pub place: Option<Place>,
    /// The object, if it is about one that could be identified.
    pub object: Option<Id>,
    /// What is wrong, what has been done about it, and what to do.
    pub reason: String,
}

impl Problem {
    /// A problem that is about no file and no object.
    pub fn general(reason: impl Into<String>) -> Self {
        Problem { place: None, object: None, reason: reason.into() }
    }

    /// A problem at a place.
    pub fn at(place: Place, object: Option<Id>, reason: impl Into<String>) -> Self {
        Problem { place: Some(place), object, reason: reason.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        f.write_str(&self.reason)
    }
}
