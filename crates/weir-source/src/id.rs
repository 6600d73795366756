//! Identity of objects, and digests that tell two versions of one apart.

use std::fmt::{self, Write};
use std::hash::{BuildHasher, Hasher, RandomState};

use weir_compiler::object::{Event, ObjectKey};

/// The kinds of objects that matter to policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `v1` Namespace
    Namespace,
    /// `v1` Pod
    Pod,
    /// `networking.k8s.io/v1` NetworkPolicy
    Policy,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 3] = [Kind::Namespace, Kind::Pod, Kind::Policy];

    /// As the API spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Kind::Namespace => "Namespace",
            Kind::Pod => "Pod",
            Kind::Policy => "NetworkPolicy",
        }
    }

    /// The one `apiVersion` that is read.
    pub const fn api_version(self) -> &'static str {
        match self {
            Kind::Namespace | Kind::Pod => "v1",
            Kind::Policy => "networking.k8s.io/v1",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An object by kind and name. Prints as `NetworkPolicy shop/web`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id {
    /// The kind.
    pub kind: Kind,
    /// The name; the namespace of a Namespace is empty.
    pub key: ObjectKey,
}

impl Id {
    /// The object that an event is about.
    pub fn of(event: &Event) -> Id {
        match event {
            Event::Namespace(namespace) => Id::namespace(&namespace.name),
            Event::NamespaceGone(name) => Id::namespace(name),
            Event::Pod(pod) => Id { kind: Kind::Pod, key: pod.key.clone() },
            Event::PodGone(key) => Id { kind: Kind::Pod, key: key.clone() },
            Event::Policy(policy) => Id { kind: Kind::Policy, key: policy.key() },
            Event::PolicyGone(key) => Id { kind: Kind::Policy, key: key.clone() },
        }
    }

    /// The namespace of this name.
    pub fn namespace(name: &str) -> Id {
        Id { kind: Kind::Namespace, key: ObjectKey::new("", name) }
    }

    /// The event that says that this object is gone.
    pub fn gone(self) -> Event {
        match self.kind {
            Kind::Namespace => Event::NamespaceGone(self.key.name),
            Kind::Pod => Event::PodGone(self.key),
            Kind::Policy => Event::PolicyGone(self.key),
        }
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Namespace => write!(f, "{} {}", self.kind, self.key.name),
            _ => write!(f, "{} {}", self.kind, self.key),
        }
    }
}

/// Makes digests of events; only digests of one `Digester` can be compared.
///
/// Keyed at random, so that nobody can make two versions of an object that look equal.
#[derive(Debug, Default, Clone)]
pub(crate) struct Digester(RandomState);

impl Digester {
    /// A digest of all fields. It goes by way of `Debug`, which cannot forget a field.
    pub(crate) fn digest(&self, event: &Event) -> u64 {
        struct Into<H>(H);
        impl<H: Hasher> Write for Into<H> {
            fn write_str(&mut self, s: &str) -> fmt::Result {
                self.0.write(s.as_bytes());
                Ok(())
            }
        }
        let mut into = Into(self.0.build_hasher());
        // Writing to a hasher cannot fail.
        let _ = write!(into, "{event:?}");
        into.0.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_compiler::object::Namespace;

    #[test]
    fn digests_tell_versions_apart() {
        let digester = Digester::default();
        let a = Event::Namespace(Namespace { name: "a".into(), ..Namespace::default() });
        let mut b = Namespace { name: "a".into(), ..Namespace::default() };
        assert_eq!(digester.digest(&a), digester.digest(&Event::Namespace(b.clone())));
        b.terminating = true;
        assert_ne!(digester.digest(&a), digester.digest(&Event::Namespace(b)));
    }

    #[test]
    fn ids_print_as_people_say_them() {
        assert_eq!(Id::namespace("shop").to_string(), "Namespace shop");
        let policy = Id { kind: Kind::Policy, key: ObjectKey::new("shop", "web") };
        assert_eq!(policy.to_string(), "NetworkPolicy shop/web");
        assert_eq!(Id::of(&policy.clone().gone()), policy);
    }
}
