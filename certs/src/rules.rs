//! The rules that a certificate chain must obey, numbered, with their sources.
//!
//! Numbers and labels are stable: metrics, logs and tests name them. Sources are the SPIFFE standards (X509-SVID,
//! SPIFFE-ID, Trust Domain and Bundle, Workload API) and RFC 5280, with their sections. Numbers that are absent are
//! promises of another kind: 3 (other SAN types are allowed and ignored) refuses nothing, and 30 and 32 to 38 concern
//! bundles in JWK form, the Workload API, key rotation, what the authority signs, and JWT-SVIDs.

/// A rule that was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// 1: exactly one URI SAN.
    NotOneUriSan,
    /// 2: a leaf has a URI SAN.
    NoUriSan,
    /// 4: the scheme is `spiffe`.
    NotSpiffeScheme,
    /// 5: the trust domain is not empty, and there is no user or port.
    BadAuthority,
    /// 6: the trust domain is 1 to 255 bytes of `[a-z0-9.-_]`.
    BadTrustDomainName,
    /// 7: the scheme is in lower case; upper case is refused, never folded.
    UpperCase,
    /// 8: no query and no fragment.
    QueryOrFragment,
    /// 9: path segments consist of `[a-zA-Z0-9.-_]`.
    BadPathCharacter,
    /// 10: no empty, `.` or `..` segment and no trailing slash.
    BadPathSegment,
    /// 11: identities are compared byte for byte with what was expected.
    UnexpectedIdentity,
    /// 12: a workload's ID has a path.
    NoPath,
    /// 13: an ID has at most 2048 bytes.
    IdTooLong,
    /// 14: a leaf is not a CA.
    LeafIsCa,
    /// 15: the key usage extension is present and critical.
    KeyUsageNotCritical,
    /// 16: a leaf has digitalSignature; beside it only keyEncipherment and keyAgreement are allowed.
    LeafKeyUsage,
    /// 17: a leaf has neither keyCertSign nor cRLSign.
    LeafMaySign,
    /// 18: an extended key usage names both serverAuth and clientAuth.
    ExtendedKeyUsage,
    /// 19: the SAN extension is critical where the subject is empty.
    SanNotCritical,
    /// 20: a signing certificate has a critical key usage with keyCertSign.
    SignerMayNotSign,
    /// 21: only a CA signs.
    SignerIsNotCa,
    /// 22: the ID of a signing certificate has no path and is of the leaf's trust domain.
    SignerId,
    /// 23: a signing certificate is never used to authenticate.
    SignerAsLeaf,
    /// 24: path length constraints are honoured, also those of a root.
    PathLength,
    /// 25: the certificate has expired.
    Expired,
    /// 25: the certificate is not valid yet.
    NotYetValid,
    /// 26: the bundle is that of the trust domain in the presented ID.
    WrongTrustDomain,
    /// 27: a critical extension that is not understood is refused.
    UnknownCriticalExtension,
    /// 28: no extension occurs twice.
    DuplicateExtension,
    /// 29: name constraints are honoured, or the chain is refused.
    NameConstraints,
    /// 31: an empty bundle trusts nothing.
    EmptyBundle,
}

impl Rule {
    /// The rule's number, 1 to 31.
    pub fn number(self) -> u8 {
        self.entry().0
    }

    /// A short label for metrics and logs; it never changes.
    pub fn reason(self) -> &'static str {
        self.entry().1
    }

    /// What the rule demands, for people, with its source.
    pub fn text(self) -> &'static str {
        self.entry().2
    }

    fn entry(self) -> (u8, &'static str, &'static str) {
        match self {
            Rule::NotOneUriSan => (1, "not_one_uri_san", "a certificate needs exactly one URI SAN (X509-SVID 2)"),
            Rule::NoUriSan => (2, "no_uri_san", "a leaf needs a URI SAN with its SPIFFE ID (X509-SVID 2)"),
            Rule::NotSpiffeScheme => (4, "not_spiffe_scheme", "the URI SAN must begin with spiffe:// (SPIFFE-ID 2)"),
            Rule::BadAuthority => {
                (5, "bad_authority", "between spiffe:// and the path stands a trust domain alone (SPIFFE-ID 2.1)")
            }
            Rule::BadTrustDomainName => {
                (6, "bad_trust_domain_name", "a trust domain is 1 to 255 bytes of [a-z0-9.-_] (SPIFFE-ID 2.1)")
            }
            Rule::UpperCase => (7, "upper_case", "write spiffe:// in lower case (SPIFFE-ID 2.1)"),
            Rule::QueryOrFragment => (8, "query_or_fragment", "a SPIFFE ID has no query and no fragment (SPIFFE-ID 2)"),
            Rule::BadPathCharacter => {
                (9, "bad_path_character", "a path segment consists of [a-zA-Z0-9.-_] (SPIFFE-ID 2.2)")
            }
            Rule::BadPathSegment => {
                (10, "bad_path_segment", "a path has no empty, . or .. segment and no trailing slash (SPIFFE-ID 2.2)")
            }
            Rule::UnexpectedIdentity => {
                (11, "unexpected_identity", "the peer must be the one that was asked for (SPIFFE-ID 2.4)")
            }
            Rule::NoPath => (12, "no_path", "the SPIFFE ID of a workload has a path (X509-SVID 3.1)"),
            Rule::IdTooLong => (13, "id_too_long", "a SPIFFE ID has at most 2048 bytes (SPIFFE-ID 2.3)"),
            Rule::LeafIsCa => (14, "leaf_is_ca", "a leaf must have cA false (X509-SVID 4.1)"),
            Rule::KeyUsageNotCritical => {
                (15, "key_usage_not_critical", "the key usage extension must be present and critical (X509-SVID 4.3)")
            }
            Rule::LeafKeyUsage => (
                16,
                "leaf_key_usage",
                "a leaf needs the key usage digitalSignature, with at most keyEncipherment and keyAgreement beside it (X509-SVID 4.3)",
            ),
            Rule::LeafMaySign => (17, "leaf_may_sign", "a leaf must not have keyCertSign or cRLSign (X509-SVID 4.3)"),
            Rule::ExtendedKeyUsage => {
                (18, "extended_key_usage", "an extended key usage must name serverAuth and clientAuth (X509-SVID 4.4)")
            }
            Rule::SanNotCritical => {
                (19, "san_not_critical", "the SAN must be critical where the subject is empty (X509-SVID 3.1)")
            }
            Rule::SignerMayNotSign => (
                20,
                "signer_may_not_sign",
                "a signing certificate needs a critical key usage with keyCertSign (X509-SVID 4.3)",
            ),
            Rule::SignerIsNotCa => (21, "signer_is_not_ca", "only a certificate with cA true may sign (X509-SVID 3.2)"),
            Rule::SignerId => (
                22,
                "signer_id",
                "a signing certificate's SPIFFE ID is its trust domain without a path (X509-SVID 3.2)",
            ),
            Rule::SignerAsLeaf => (23, "signer_as_leaf", "a signing certificate must not authenticate (X509-SVID 3.2)"),
            Rule::PathLength => {
                (24, "path_length", "there are more intermediates than a path length allows (RFC 5280 4.2.1.9)")
            }
            Rule::Expired => (25, "expired", "the certificate has expired (RFC 5280 4.1.2.5)"),
            Rule::NotYetValid => (25, "not_yet_valid", "the certificate is not valid yet (RFC 5280 4.1.2.5)"),
            Rule::WrongTrustDomain => (
                26,
                "wrong_trust_domain",
                "a SPIFFE ID is judged by the bundle of its own trust domain (SPIFFE Workload API 4.6)",
            ),
            Rule::UnknownCriticalExtension => {
                (27, "unknown_critical_extension", "a critical extension is not understood (RFC 5280 4.2)")
            }
            Rule::DuplicateExtension => (28, "duplicate_extension", "an extension occurs twice (RFC 5280 4.2)"),
            Rule::NameConstraints => {
                (29, "name_constraints", "the chain breaks a name constraint, or has one on URIs (X509-SVID 4.2)")
            }
            Rule::EmptyBundle => {
                (31, "empty_bundle", "the trust bundle has no usable root, so nothing is trusted (SPIFFE bundle 4.1.3)")
            }
        }
    }
}
