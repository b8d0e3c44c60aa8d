//! SPIFFE IDs are exact, bounded, and what cannot be one says what to write instead.
use proptest::prelude::*;
use weft_certs::{SpiffeId, TrustDomain};

#[test]
fn an_id_tells_its_parts() {
    let id = SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/cart").unwrap();
    assert_eq!(id.as_str(), "spiffe://cluster.local/ns/shop/sa/cart");
    assert_eq!((id.trust_domain(), id.path()), ("cluster.local", "/ns/shop/sa/cart"));
    assert_eq!(id.service_account(), Some(("shop", "cart")));
    assert_eq!(format!("{id} {id:?}"), format!("{0} {0}", id.as_str()));
}

#[test]
fn only_paths_of_wefts_form_name_a_service_account() {
    for path in
        ["/ns/shop/sa", "/ns/shop", "/a", "/ns/shop/sa/cart/x", "/ns/a/b/sa/c", "/x/ns/shop/sa/cart", "/ns/a/sa/b/sa/c"]
    {
        let id = SpiffeId::parse(&format!("spiffe://cluster.local{path}")).unwrap();
        assert_eq!(id.service_account(), None, "{path}");
    }
}

#[test]
fn a_service_account_becomes_an_id_or_is_refused() {
    let domain = TrustDomain::parse("cluster.local").unwrap();
    let id = SpiffeId::for_service_account(&domain, "shop", "cart").unwrap();
    assert_eq!(id.as_str(), "spiffe://cluster.local/ns/shop/sa/cart");
    for (namespace, account, says) in [
        ("shop/sa/admin", "x", "namespace: "),
        ("", "cart", "namespace: "),
        ("..", "cart", "namespace: "),
        ("shop", "", "service account: "),
        ("shop", "a/b", "service account: "),
        ("shop", "a%2fb", "service account: "),
        ("shop", &"a".repeat(2048), "at most 2048 bytes"),
    ] {
        let error = SpiffeId::for_service_account(&domain, namespace, account).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn errors_say_what_to_write_instead() {
    for (text, says) in [
        ("", "begin with spiffe://"),
        ("cluster.local/ns/shop/sa/cart", "begin with spiffe://"),
        ("spiffe://cluster.local", "add a path, such as spiffe://cluster.local/ns/shop/sa/cart"),
        ("spiffe://Cluster.local/a", "a-z, 0-9, dot, hyphen and underscore"),
        ("spiffe://cluster.local:80/a", "name of the trust domain alone"),
        ("spiffe://cluster.local/a/", "without one at the end"),
        ("spiffe://cluster.local/a b", "a-z, A-Z, 0-9"),
        ("spiffe://cluster.local/a?b", "what stands before ? or #"),
        ("spiffe://cluster.local/\u{1f600}", "a-z, A-Z, 0-9"),
    ] {
        let error = SpiffeId::parse(text).unwrap_err().to_string();
        assert!(error.contains(says), "{text}: {error}");
    }
    let error = TrustDomain::parse("spiffe://cluster.local").unwrap_err().to_string();
    assert!(error.contains("without spiffe://"), "{error}");
    let long = SpiffeId::parse(&format!("spiffe://d/{}~", "a".repeat(2000))).unwrap_err().to_string();
    assert!(long.len() < 300, "messages stay short: {} bytes", long.len());
}

#[test]
fn a_trust_domain_has_1_to_255_bytes_of_its_alphabet() {
    for name in ["a", "cluster.local", "td_1.example-2", &"d".repeat(255)] {
        let domain = TrustDomain::parse(name).unwrap();
        assert_eq!((domain.as_str(), domain.id()), (name, format!("spiffe://{name}")));
    }
    for name in ["", "A", "a/b", "a b", "a%62", "é", "a:1", "u@a", "a\0", &"d".repeat(256)] {
        assert!(TrustDomain::parse(name).is_err(), "{name:?}");
    }
}

#[test]
fn ids_are_strings_to_serde_and_stay_valid() {
    use serde::Deserialize;
    use serde::de::IntoDeserializer;
    use serde::de::value::{Error, StrDeserializer};
    let read = |text: &'static str| {
        let deserializer: StrDeserializer<'_, Error> = text.into_deserializer();
        SpiffeId::deserialize(deserializer)
    };
    assert_eq!(read("spiffe://td/a").unwrap().as_str(), "spiffe://td/a");
    assert!(read("spiffe://td/a/../b").unwrap_err().to_string().contains("path segment"));
}

fn valid_id() -> impl Strategy<Value = String> {
    let segment = "[a-zA-Z0-9._-]{1,12}".prop_filter("dots only", |segment| segment != "." && segment != "..");
    ("[a-z0-9._-]{1,20}", prop::collection::vec(segment, 1..6))
        .prop_map(|(domain, segments)| format!("spiffe://{domain}/{}", segments.join("/")))
}

proptest! {
    #[test]
    fn parsing_never_panics_and_keeps_every_byte(text in any::<String>()) {
        if let Ok(id) = SpiffeId::parse(&text) {
            prop_assert_eq!(id.as_str(), &text);
        }
        let _ = TrustDomain::parse(&text);
    }

    #[test]
    fn nearly_valid_ids_never_panic(text in "[sS]?spiffe:/{1,3}[a-zA-Z0-9.@:%_/?#é~-]{0,40}") {
        if let Ok(id) = SpiffeId::parse(&text) {
            prop_assert_eq!(id.to_string(), text);
        }
    }

    #[test]
    fn every_valid_id_round_trips(text in valid_id()) {
        let id: SpiffeId = text.parse().unwrap();
        prop_assert_eq!(&id.to_string(), &text);
        let parts = format!("spiffe://{}{}", id.trust_domain(), id.path());
        prop_assert_eq!(parts, text);
    }

    #[test]
    fn one_changed_byte_is_another_id_or_none(text in valid_id(), position in any::<prop::sample::Index>(), byte in 0x20u8..0x7f) {
        let mut bytes = text.clone().into_bytes();
        let position = position.index(bytes.len());
        prop_assume!(bytes[position] != byte);
        bytes[position] = byte;
        let changed = String::from_utf8(bytes).unwrap();
        if let Ok(changed) = SpiffeId::parse(&changed) {
            prop_assert_ne!(changed, SpiffeId::parse(&text).unwrap());
        }
    }
}
