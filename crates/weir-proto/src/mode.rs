//! Whether policies are enforced: one mode for all nodes.

use std::fmt;

use crate::pb;

/// What agents do with their slices. The default is what holds until somebody says something else.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// Policies are enforced.
    #[default]
    Enforce,
    /// Verdicts are told, and nothing is dropped.
    Audit,
    /// Nothing of Weir's is in the kernel; agents stay, and keep their slices.
    Off,
    /// As off, and agents leave nothing on their nodes' disks: Weir is about to be uninstalled.
    Withdrawn,
}

impl Mode {
    /// All of them.
    pub const ALL: [Mode; 4] = [Mode::Enforce, Mode::Audit, Mode::Off, Mode::Withdrawn];

    /// As it is written in ConfigMaps, metrics and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::Enforce => "enforce",
            Mode::Audit => "audit",
            Mode::Off => "off",
            Mode::Withdrawn => "withdrawn",
        }
    }

    /// Reads what [`as_str`](Mode::as_str) writes. Of others, says what they are.
    ///
    /// # Errors
    /// It is no mode that this version has.
    pub fn parse(text: &str) -> Result<Mode, UnknownMode> {
        Mode::ALL.into_iter().find(|mode| mode.as_str() == text).ok_or_else(|| UnknownMode(text.to_owned()))
    }

    /// Whether policies are enforced.
    pub fn enforces(self) -> bool {
        self == Mode::Enforce
    }

    /// Whether something of Weir's is in the kernel.
    pub fn installs(self) -> bool {
        matches!(self, Mode::Enforce | Mode::Audit)
    }

    /// As it goes over the wire.
    pub fn to_wire(self) -> pb::Mode {
        match self {
            Mode::Enforce => pb::Mode::Enforce,
            Mode::Audit => pb::Mode::Audit,
            Mode::Off => pb::Mode::Off,
            Mode::Withdrawn => pb::Mode::Withdrawn,
        }
    }

    /// What the other end means. `None`: it says nothing of modes. What this version does not have is enforced, so that nothing is open by mistake.
    pub fn from_wire(mode: i32) -> Option<Mode> {
        Some(match pb::Mode::try_from(mode) {
            Ok(pb::Mode::Unspecified) => return None,
            Ok(pb::Mode::Off) => Mode::Off,
            Ok(pb::Mode::Withdrawn) => Mode::Withdrawn,
            Ok(pb::Mode::Audit) => Mode::Audit,
            Ok(pb::Mode::Enforce) | Err(_) => Mode::Enforce,
        })
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A mode that this version does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("mode {0:?} is none of enforce, audit and off")]
pub struct UnknownMode(pub String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_is_read_as_it_was_written() {
        for mode in Mode::ALL {
            assert_eq!(Mode::parse(mode.as_str()), Ok(mode));
            assert_eq!(Mode::from_wire(mode.to_wire().into()), Some(mode));
        }
    }

    #[test]
    fn what_is_not_known_is_refused_by_name_and_enforced_on_the_wire() {
        let typo = Mode::parse("of").unwrap_err().to_string();
        assert!(typo.contains("\"of\" is none of enforce, audit and off"), "{typo}");
        assert_eq!(Mode::from_wire(99), Some(Mode::Enforce));
        assert_eq!(Mode::from_wire(0), None);
    }
}
