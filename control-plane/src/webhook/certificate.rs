//! The webhooks' own certificates: an authority that serves nothing else, and what it signs. Does no I/O; the clock is an
//! argument.
//!
//! All of it is kept in one Secret that every replica reads, so all serve the same certificate. It is renewed in steps,
//! each of which leaves a state that works: a new root joins the roots while the old one still signs; an hour later or
//! more a serving certificate is signed by it; with the next serving certificate the old root goes. API servers trust all
//! the roots that are kept. A pair that does not fit together is never served.
mod make;

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use make::{BACKDATED, LEAF_LIFETIME, make_leaf, make_root, pem, pem_of};
use rcgen::{KeyPair, PublicKeyData as _};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;

/// How long a new root is known before it signs: time for every API server to learn of it.
const SETTLING: Duration = Duration::from_secs(3600);
/// Roots at one time: more than one rotation needs.
const MAX_ROOTS: usize = 4;
/// Names in one certificate.
const MAX_NAMES: usize = 32;

/// The certificates cannot be used, or could not be made.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CertificateError(String);

/// The roots that callers' certificates must chain to.
pub type ClientRoots = Arc<RootCertStore>;

/// What the Secret holds, all of it PEM. `Debug` shows no key.
#[derive(Clone, PartialEq, Eq)]
pub struct Stored {
    /// `ca.crt`: the roots that API servers trust, the one that signs first.
    pub roots: String,
    /// `ca.key`: key of the first root.
    pub root_key: String,
    /// `tls.crt`: the serving certificate.
    pub certificate: String,
    /// `tls.key`: its key.
    pub key: String,
}

/// What [`Stored`] means, its parts fitting together.
pub struct Opened {
    roots: Vec<Validity>,
    root_key: KeyPair,
    /// Which of the roots signed the serving certificate.
    signer: usize,
    leaf: Validity,
    names: BTreeSet<String>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

/// What is served now.
pub struct Serving {
    /// For new connections.
    pub tls: Arc<ServerConfig>,
    /// What API servers must trust, PEM.
    pub bundle: String,
    /// When the serving certificate expires.
    pub not_after: SystemTime,
    leaf: CertificateDer<'static>,
}

impl Serving {
    /// Whether both are the same certificate under the same roots.
    pub fn is_same(&self, other: &Self) -> bool {
        self.leaf == other.leaf && self.bundle == other.bundle
    }
}

/// A certificate and when it is valid.
struct Validity {
    der: CertificateDer<'static>,
    not_before: SystemTime,
    not_after: SystemTime,
}

/// The names by which API servers, and people who look, call the webhooks of `service` in `namespace`.
pub fn names(service: &str, namespace: &str, extra: Option<&str>) -> Vec<String> {
    let mut names = vec![
        format!("{service}.{namespace}.svc"),
        format!("{service}.{namespace}.svc.cluster.local"),
        format!("{service}.{namespace}"),
        "localhost".to_owned(),
        "127.0.0.1".to_owned(),
        "::1".to_owned(),
    ];
    names.extend(extra.map(str::to_owned));
    names
}

impl Stored {
    /// A new authority, and a serving certificate for `names`.
    ///
    /// # Errors
    /// A name is neither a DNS name nor an address, or the clock is out of range.
    pub fn make(names: &[String], now: SystemTime) -> Result<Self, CertificateError> {
        let (root, root_key) = make_root(now)?;
        let (certificate, key) = make_leaf(&root, &root_key, names, now)?;
        Ok(Self { roots: pem_of(&root), root_key: root_key.serialize_pem(), certificate, key })
    }

    /// Reads it and checks that its parts belong together; whether it is in date is not looked at.
    ///
    /// # Errors
    /// What does not fit.
    pub fn open(&self) -> Result<Opened, CertificateError> {
        let wrong = |what: &str| CertificateError(what.to_owned());
        let ders = certificates(&self.roots, "ca.crt")?;
        if ders.len() > MAX_ROOTS {
            return Err(wrong("ca.crt holds too many certificates"));
        }
        let root_key = KeyPair::from_pem(&self.root_key).map_err(|_| wrong("ca.key is not a private key in PEM"))?;
        let chain = certificates(&self.certificate, "tls.crt")?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes())
            .map_err(|_| wrong("tls.key is not a private key in PEM"))?;
        let leaf = parsed(&chain[0], "tls.crt")?;
        let roots = ders.iter().map(|der| parsed(der, "ca.crt")).collect::<Result<Vec<_>, _>>()?;
        if roots.iter().any(|root| !root.is_ca()) {
            return Err(wrong("ca.crt holds a certificate that is no authority's"));
        }
        if roots[0].public_key().raw != root_key.subject_public_key_info() {
            return Err(wrong("ca.key is not the key of the first certificate of ca.crt"));
        }
        let signer = roots
            .iter()
            .position(|root| root.subject() == leaf.issuer() && leaf.verify_signature(Some(root.public_key())).is_ok())
            .ok_or_else(|| wrong("tls.crt is signed by no certificate of ca.crt"))?;
        let names = names_of(&leaf);
        let leaf = Validity::of(&chain[0], &leaf)?;
        let roots = ders.iter().zip(&roots).map(|(der, root)| Validity::of(der, root)).collect::<Result<_, _>>()?;
        let opened = Opened { roots, root_key, signer, leaf, names, chain, key };
        // rustls compares certificate and key.
        opened.server_config(None)?;
        Ok(opened)
    }
}

impl Opened {
    /// What is to be served at `now` to callers with a certificate under `client_roots`, or to all without such.
    ///
    /// # Errors
    /// The certificate has expired, or `client_roots` cannot be used.
    pub fn serving(&self, client_roots: Option<&ClientRoots>, now: SystemTime) -> Result<Serving, CertificateError> {
        if self.leaf.not_after <= now || self.roots[self.signer].not_after <= now {
            return Err(CertificateError("the webhooks' certificate has expired".into()));
        }
        Ok(Serving {
            tls: self.server_config(client_roots)?,
            bundle: self.roots.iter().map(|root| pem_of(&root.der)).collect(),
            not_after: self.leaf.not_after,
            leaf: self.leaf.der.clone(),
        })
    }

    /// What is to be stored next, if anything is due: one step at a time.
    ///
    /// # Errors
    /// As [`Stored::make`].
    pub fn due(&self, names: &[String], now: SystemTime) -> Result<Option<Stored>, CertificateError> {
        let (root, leaf) = (&self.roots[0], &self.leaf);
        // Nobody was here to renew for months.
        if root.not_after <= now + LEAF_LIFETIME {
            let mut made = Stored::make(names, now)?;
            made.roots += &self.pem_of_roots(|root| root.not_after > now);
            return Ok(Some(made));
        }
        let settled = self.signer == 0 || root.not_before + BACKDATED + SETTLING <= now || leaf.not_after <= now;
        let unnamed = names.iter().any(|name| !self.names.contains(name));
        if (unnamed || leaf.is_due(now)) && settled {
            // Replicas of two versions may want different names: then they agree on all of them until the next one.
            let kept = self.names.iter().filter(|_| unnamed);
            let all: BTreeSet<String> = names.iter().chain(kept).take(MAX_NAMES).cloned().collect();
            let (certificate, key) = make_leaf(&root.der, &self.root_key, &all.into_iter().collect::<Vec<_>>(), now)?;
            // Replicas serve the last certificate until they have read the new one.
            let last = self.roots[self.signer].der.clone();
            let roots = self.pem_of_roots(|kept| kept.der == root.der || (kept.der == last && kept.not_after > now));
            return Ok(Some(Stored { roots, root_key: self.root_key.serialize_pem(), certificate, key }));
        }
        if root.is_due(now) && self.signer == 0 {
            let (new, new_key) = make_root(now)?;
            return Ok(Some(Stored {
                roots: pem_of(&new) + &self.pem_of_roots(|old| old.der == root.der),
                root_key: new_key.serialize_pem(),
                certificate: self.chain.iter().map(pem_of).collect(),
                key: pem("PRIVATE KEY", self.key.secret_der()),
            }));
        }
        Ok(None)
    }

    fn pem_of_roots(&self, keep: impl Fn(&Validity) -> bool) -> String {
        self.roots.iter().filter(|root| keep(root)).map(|root| pem_of(&root.der)).collect()
    }

    fn server_config(&self, client_roots: Option<&ClientRoots>) -> Result<Arc<ServerConfig>, CertificateError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let wrong = |what: &str, fault: &dyn fmt::Display| CertificateError(format!("{what}: {fault}"));
        // TLS 1.2 as well: an API server that is held to FIPS rules may not speak 1.3.
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(|fault| wrong("TLS", &fault))?;
        let builder = match client_roots {
            None => builder.with_no_client_auth(),
            Some(roots) => builder.with_client_cert_verifier(
                WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider)
                    .build()
                    .map_err(|fault| wrong("the roots of the webhooks' callers cannot be used", &fault))?,
            ),
        };
        let mut config = builder
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .map_err(|fault| wrong("tls.crt and tls.key do not belong together", &fault))?;
        // API servers prefer HTTP/1.1 for webhooks: so their calls spread over the replicas.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }
}

impl fmt::Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stored(redacted)")
    }
}

impl Validity {
    fn of(der: &CertificateDer<'static>, certificate: &X509Certificate<'_>) -> Result<Self, CertificateError> {
        let time = |seconds: i64| {
            u64::try_from(seconds)
                .ok()
                .and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)))
                .ok_or_else(|| CertificateError("a certificate's validity is out of range".into()))
        };
        let validity = certificate.validity();
        Ok(Self {
            der: der.clone(),
            not_before: time(validity.not_before.timestamp())?,
            not_after: time(validity.not_after.timestamp())?,
        })
    }

    /// Whether two thirds of its life are over.
    fn is_due(&self, now: SystemTime) -> bool {
        let lifetime = self.not_after.duration_since(self.not_before).unwrap_or_default();
        now >= self.not_before + lifetime * 2 / 3
    }
}

/// Reads roots that callers' certificates must chain to, from PEM.
///
/// # Errors
/// There is none, or one cannot serve as a root.
pub fn client_roots(pem: &str) -> Result<ClientRoots, CertificateError> {
    let mut roots = RootCertStore::empty();
    for der in certificates(pem, "the roots of the webhooks' callers")? {
        roots.add(der).map_err(|fault| CertificateError(format!("the roots of the webhooks' callers: {fault}")))?;
    }
    Ok(Arc::new(roots))
}

fn certificates(pem: &str, name: &str) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match read {
        Ok(read) if !read.is_empty() => Ok(read),
        _ => Err(CertificateError(format!("{name} holds no certificate in PEM"))),
    }
}

fn parsed<'d>(der: &'d CertificateDer<'static>, name: &str) -> Result<X509Certificate<'d>, CertificateError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(CertificateError(format!("{name} holds what is no X.509 certificate"))),
    }
}

fn names_of(certificate: &X509Certificate<'_>) -> BTreeSet<String> {
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    let address = |bytes: &[u8]| match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
    };
    let text = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => address(bytes).map(|address| address.to_string()),
        _ => None,
    };
    names.iter().filter_map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn wanted() -> Vec<String> {
        names("weft-control-plane", "weft-system", None)
    }

    fn start() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_900_000_000)
    }

    fn made() -> Stored {
        Stored::make(&wanted(), start()).expect("made")
    }

    fn roots_of(stored: &Stored) -> Vec<CertificateDer<'static>> {
        certificates(&stored.roots, "ca.crt").expect("roots")
    }

    /// Whether an API server that trusts `bundle` accepts what is served, by its own (web PKI) rules.
    fn accepts(bundle: &str, served: &Stored, name: &str, now: SystemTime) -> bool {
        use rustls::client::danger::ServerCertVerifier as _;
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(certificates(bundle, "bundle").expect("roots"));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .expect("a verifier");
        let leaf = &certificates(&served.certificate, "tls.crt").expect("a leaf")[0];
        let now = rustls::pki_types::UnixTime::since_unix_epoch(
            now.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970"),
        );
        verifier.verify_server_cert(leaf, &[], &name.try_into().expect("a name"), &[], now).is_ok()
    }

    #[test]
    fn what_is_made_is_accepted_under_every_name_from_an_hour_before_until_it_expires() {
        let stored = made();
        stored.open().expect("whole").serving(None, start()).expect("in date");
        for name in ["weft-control-plane.weft-system.svc", "localhost", "127.0.0.1", "::1"] {
            assert!(accepts(&stored.roots, &stored, name, start()), "{name}");
        }
        assert!(!accepts(&stored.roots, &stored, "other.weft-system.svc", start()));
        for (now, expected) in [
            (start() - BACKDATED, true),
            (start() - BACKDATED - Duration::from_secs(1), false),
            (start() + LEAF_LIFETIME, true),
            (start() + LEAF_LIFETIME + Duration::from_secs(1), false),
        ] {
            assert_eq!(accepts(&stored.roots, &stored, "localhost", now), expected);
        }
        assert!(stored.open().expect("whole").serving(None, start() + LEAF_LIFETIME).is_err());
    }

    #[test]
    fn what_does_not_fit_together_is_never_used() {
        let (one, two) = (made(), made());
        let rows = [
            ("a key of another", Stored { key: two.key.clone(), ..one.clone() }, "tls.key"),
            (
                "a certificate of another",
                Stored { certificate: two.certificate.clone(), ..one.clone() },
                "signed by no",
            ),
            ("both of another", Stored { certificate: two.certificate, key: two.key, ..one.clone() }, "signed by no"),
            ("roots of another", Stored { roots: two.roots.clone(), ..one.clone() }, "ca.key"),
            (
                "root and key of another",
                Stored { roots: two.roots, root_key: two.root_key, ..one.clone() },
                "signed by",
            ),
            ("a leaf as root", Stored { roots: one.certificate.clone(), ..one.clone() }, "no authority"),
            ("no certificate", Stored { certificate: String::new(), ..one.clone() }, "tls.crt holds no certificate"),
            ("no key", Stored { key: "garbage".into(), ..one.clone() }, "tls.key is not"),
            ("no root key", Stored { root_key: String::new(), ..one.clone() }, "ca.key is not"),
            ("no roots", Stored { roots: "\0".into(), ..one.clone() }, "ca.crt holds no certificate"),
            ("many roots", Stored { roots: one.roots.repeat(5), ..one.clone() }, "too many"),
            ("cut off", Stored { certificate: one.certificate[..200].into(), ..one.clone() }, "tls.crt"),
        ];
        for (name, stored, expected) in rows {
            let fault = stored.open().err().unwrap_or_else(|| panic!("{name} was accepted")).to_string();
            assert!(fault.contains(expected), "{name}: {fault}");
        }
        one.open().expect("whole");
    }

    #[test]
    fn over_two_years_every_step_is_accepted_by_who_knows_the_step_before_or_after_it() {
        let mut stored = made();
        let (mut leaves, mut roots) = (0, 0);
        for hours in 0..2 * 365 * 24 {
            let now = start() + hours * HOUR;
            let Some(next) = stored.open().expect("whole").due(&wanted(), now).expect("made") else { continue };
            next.open().expect("whole").serving(None, now).expect("in date");
            // An API server that has the old bundle yet, or the new one already, whichever replica it meets.
            for (bundle, served) in [(&stored, &next), (&next, &stored), (&next, &next)] {
                assert!(accepts(&bundle.roots, served, "localhost", now), "after {hours} hours");
            }
            assert!(roots_of(&next).len() <= 2, "after {hours} hours {} roots", roots_of(&next).len());
            leaves += usize::from(next.certificate != stored.certificate);
            roots += usize::from(roots_of(&next)[0] != roots_of(&stored)[0]);
            stored = next;
        }
        assert!((35..=38).contains(&leaves), "{leaves} serving certificates");
        assert!((2..=3).contains(&roots), "{roots} roots");
    }

    #[test]
    fn after_a_long_absence_one_step_makes_it_usable() {
        for days in [31, 340, 364, 366, 4_000] {
            let now = start() + days * DAY;
            let next = made().open().expect("whole").due(&wanted(), now).expect("made").expect("due");
            next.open().expect("whole").serving(None, now).unwrap_or_else(|fault| panic!("{days} days: {fault}"));
            assert!(accepts(&next.roots, &next, "localhost", now), "{days} days");
        }
    }

    #[test]
    fn replicas_that_want_different_names_agree() {
        let (old, new) = (wanted(), names("weft-control-plane", "weft-system", Some("webhooks.example.org")));
        let both = made().open().expect("whole").due(&new, start()).expect("made").expect("a name is missing");
        let both = both.open().expect("whole");
        assert_eq!((both.due(&old, start()), both.due(&new, start())), (Ok(None), Ok(None)));
    }

    #[test]
    fn callers_roots_must_be_roots() {
        client_roots(&made().roots).expect("roots");
        for pem in ["", "garbage", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert!(client_roots(pem).is_err(), "{pem}");
        }
    }
}
