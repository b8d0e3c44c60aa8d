//! A trust bundle made ready for path validation once, instead of in every handshake.
use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use rustls::pki_types::TrustAnchor;

use crate::bundle::TrustBundle;
use crate::certificate::Certificate;

/// A bundle with its usable roots, parsed.
#[derive(Debug)]
pub(crate) struct Anchors {
    pub(crate) bundle: TrustBundle,
    anchors: Vec<TrustAnchor<'static>>,
    /// What webpki does not keep of a root, in the order of `anchors`.
    limits: Vec<Limits>,
}

#[derive(Debug)]
struct Limits {
    not_before: SystemTime,
    not_after: SystemTime,
    path_length: Option<u32>,
}

impl Limits {
    fn include(&self, now: SystemTime, tolerance: Duration) -> bool {
        now + tolerance >= self.not_before && now <= self.not_after + tolerance
    }
}

impl Anchors {
    /// Roots that cannot serve are left out, so that one bad root of a bundle does not take the others with it.
    pub(crate) fn new(bundle: TrustBundle) -> Self {
        let (anchors, limits) = bundle
            .roots
            .iter()
            .filter_map(|der| {
                let root = Certificate::parse(der).ok()?;
                root.check_root().ok()?;
                let anchor = webpki::anchor_from_trusted_cert(der).ok()?.to_owned();
                let limits = Limits {
                    not_before: root.not_before,
                    not_after: root.not_after,
                    path_length: root.basic_constraints.and_then(|constraints| constraints.path_len_constraint),
                };
                Some((anchor, limits))
            })
            .unzip();
        Anchors { bundle, anchors, limits }
    }

    /// The roots that are valid at `now`; none: nothing is trusted.
    pub(crate) fn valid_at(&self, now: SystemTime, tolerance: Duration) -> Cow<'_, [TrustAnchor<'static>]> {
        if self.limits.iter().all(|limits| limits.include(now, tolerance)) {
            return Cow::Borrowed(&self.anchors);
        }
        let pairs = self.anchors.iter().zip(&self.limits);
        Cow::Owned(
            pairs.filter(|(_, limits)| limits.include(now, tolerance)).map(|(anchor, _)| anchor.clone()).collect(),
        )
    }

    /// When the last root of this name (`Name`, DER) expires.
    pub(crate) fn expiry(&self, subject: &[u8]) -> Option<SystemTime> {
        let roots = self.bundle.roots.iter().filter_map(|root| Certificate::parse(root).ok());
        roots.filter(|root| root.subject == subject).map(|root| root.not_after).max()
    }

    /// Whether a root with this name and key allows so many intermediates below it. webpki checks the path length of
    /// intermediates, not of roots.
    pub(crate) fn allow_path(&self, anchor: &TrustAnchor<'_>, intermediates: usize) -> bool {
        self.anchors.iter().zip(&self.limits).any(|(root, limits)| {
            root == anchor && limits.path_length.is_none_or(|most| intermediates <= most as usize)
        })
    }
}
