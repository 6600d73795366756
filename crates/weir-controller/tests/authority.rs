//! However many controllers there are and however the clock goes on: what one presents, agents trust, also those
//! that read the bundle a while ago.

use std::sync::Mutex;

use time::{Duration, OffsetDateTime};
use tonic::async_trait;
use weir_controller::authority::{Authorities, Error, Store, agree};

/// A Secret and a ConfigMap of an API server that counts versions.
#[derive(Default)]
struct Shared(Mutex<(Option<Authorities>, u64, String)>);

#[async_trait]
impl Store for Shared {
    async fn read(&self) -> Result<Option<(Authorities, String)>, Error> {
        let found = {
            let stored = self.0.lock().expect("held for a moment");
            stored.0.clone().map(|authorities| (authorities, stored.1.to_string()))
        };
        // all have read before one writes
        tokio::task::yield_now().await;
        Ok(found)
    }

    async fn write(&self, authorities: &Authorities, version: Option<&str>) -> Result<bool, Error> {
        let mut stored = self.0.lock().expect("held for a moment");
        let expected = stored.0.is_some().then(|| stored.1.to_string());
        if expected.as_deref() != version {
            return Ok(false);
        }
        stored.0 = Some(authorities.clone());
        stored.1 += 1;
        Ok(true)
    }

    async fn publish(&self, bundle: &str) -> Result<(), Error> {
        self.0.lock().expect("held for a moment").2 = bundle.to_owned();
        Ok(())
    }
}

fn bundle(store: &Shared) -> String {
    store.0.lock().expect("held for a moment").2.clone()
}

fn start() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000).expect("in 2027")
}

/// As an agent checks it: rustls, with the bundle as its roots, at a time.
fn trusted(bundle: &str, leaf: &str, name: &str, now: OffsetDateTime) -> bool {
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    let mut roots = rustls::RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        roots.add(root.expect("PEM")).expect("a root");
    }
    let provider = rustls::crypto::aws_lc_rs::default_provider().into();
    let verifier = WebPkiServerVerifier::builder_with_provider(std::sync::Arc::new(roots), provider).build();
    let verifier = verifier.expect("there are roots");
    let leaf = CertificateDer::from_pem_slice(leaf.as_bytes()).expect("PEM");
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let seconds = u64::try_from(now.unix_timestamp()).expect("after 1970");
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
    verifier.verify_server_cert(&leaf, &[], &name, &[], now).is_ok()
}

#[tokio::test]
async fn of_many_that_begin_at_once_one_wins_and_all_use_it() {
    let store = Shared::default();
    let now = start();
    let all = futures_util::future::join_all((0..8).map(|_| agree(&store, now))).await;
    let first = all[0].as_ref().expect("agreed");
    for one in &all {
        assert_eq!(one.as_ref().expect("agreed"), first);
    }
    assert_eq!(bundle(&store), first.bundle());
    let leaf = first.issue(&["weir-controller.weir-system.svc".to_owned()], now).expect("issued");
    let is_trusted = |name, at| trusted(&bundle(&store), &leaf.certificate, name, at);
    assert!(is_trusted("weir-controller.weir-system.svc", now));
    assert!(!is_trusted("other.weir-system.svc", now));
    assert!(!is_trusted("weir-controller.weir-system.svc", now + Duration::days(8)), "it lives for a week");
    let foreign =
        Authorities::new(now).expect("made").issue(&["weir-controller.weir-system.svc".to_owned()], now);
    let foreign = foreign.expect("issued").certificate;
    assert!(!trusted(&bundle(&store), &foreign, "weir-controller.weir-system.svc", now));
}

/// Three years, in steps of 20 minutes: two controllers, and an agent whose copy of the bundle is up to two hours old.
#[tokio::test]
async fn an_agent_always_trusts_what_is_presented() {
    let store = Shared::default();
    let names = ["weir-controller.weir-system.svc".to_owned()];
    let mut leaves: [Option<weir_controller::authority::Leaf>; 2] = [None, None];
    let mut read: Vec<String> = Vec::new();
    let mut bundles = std::collections::BTreeSet::new();
    for step in 0..(3 * 365 * 72) {
        let now = start() + Duration::minutes(20 * step);
        // each looks after it once an hour, at different times
        for (i, leaf) in leaves.iter_mut().enumerate() {
            if step % 3 == i64::try_from(i).expect("small") || leaf.is_none() {
                let authorities = agree(&store, now).await.expect("agreed");
                if leaf.as_ref().is_none_or(|leaf| authorities.outdated(leaf, now)) {
                    *leaf = Some(authorities.issue(&names, now).expect("issued"));
                }
            }
        }
        read.push(bundle(&store));
        if read.len() > 6 {
            read.remove(0);
        }
        bundles.insert(read[read.len() - 1].clone());
        // each certificate is checked when it changes, and now and then
        if step % 29 == 0 || bundles.len() > 1 && read.first() != read.last() {
            for leaf in leaves.iter().flatten() {
                for copy in [read.first(), read.last()].into_iter().flatten() {
                    assert!(trusted(copy, &leaf.certificate, &names[0], now), "at {now}");
                }
            }
        }
    }
    assert!(bundles.len() > 8, "the authority was renewed: {}", bundles.len());
}

#[tokio::test]
async fn after_a_year_without_controllers_there_is_a_new_one() {
    let store = Shared::default();
    let before = agree(&store, start()).await.expect("agreed");
    let now = start() + Duration::days(500);
    let after = agree(&store, now).await.expect("agreed");
    assert_ne!(before, after);
    let leaf = after.issue(&["n".to_owned()], now).expect("issued");
    assert!(trusted(&bundle(&store), &leaf.certificate, "n", now));
}
