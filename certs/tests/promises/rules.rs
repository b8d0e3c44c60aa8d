//! Each rule of the X509-SVID standard refuses what breaks it, in a real handshake, on the server and on the client,
//! and lets pass what obeys it. Where the catalogue says that stock path validation accepts a bad chain, that is shown
//! too: there, nothing but our own rule stands between the chain and the application.
use std::time::{Duration, SystemTime};

use rustls::pki_types::UnixTime;
use webpki::{EndEntityCert, KeyUsage};
use weft_certs::{TrustBundle, TrustDomain, VerifyError, verify_chain};

use crate::catalogue::{Accepts, Bad, Rejects, all_bad, good, under_root};
use crate::certificate::*;
use crate::handshake::{judged_by_client, judged_by_server};

#[test]
fn a_chain_that_obeys_every_rule_is_accepted_on_both_sides() {
    for (what, id, (presented, bundle)) in good() {
        for peer in [judged_by_server(&presented, &bundle), judged_by_client(&presented, &bundle, id)] {
            assert_eq!(peer.unwrap_or_else(|error| panic!("{what}: {error}")).as_str(), id, "{what}");
        }
    }
}

#[test]
fn a_chain_that_breaks_a_rule_is_refused_on_both_sides_by_that_rule() {
    for Bad { rule, reason, case: (presented, bundle), what, .. } in all_bad() {
        for refusal in [judged_by_server(&presented, &bundle), judged_by_client(&presented, &bundle, ID)] {
            let error = refusal.expect_err(&what);
            assert_eq!((error.rule(), error.reason()), (rule, reason), "{what}: {error}");
        }
    }
}

#[test]
fn stock_path_validation_accepts_what_the_catalogue_says_it_accepts() {
    for Bad { stock, case: (presented, bundle), what, rule, .. } in all_bad() {
        let verdict = if stock_accepts(&presented, &bundle) { Accepts } else { Rejects };
        assert_eq!(verdict, stock, "rule {rule}, {what}");
    }
}

/// What a server with rustls' own verifier does: path validation for client authentication.
fn stock_accepts(presented: &Presented, bundle: &TrustBundle) -> bool {
    let anchors: Vec<_> = bundle.roots.iter().map(|root| webpki::anchor_from_trusted_cert(root).unwrap()).collect();
    let Ok(leaf) = EndEntityCert::try_from(&presented.chain[0]) else { return false };
    let (rest, now) = (&presented.chain[1..], UnixTime::now());
    leaf.verify_for_usage(webpki::ALL_VERIFICATION_ALGS, &anchors, rest, now, KeyUsage::client_auth(), None, None)
        .is_ok()
}

/// Rule 31: nothing is trusted under an empty bundle, nor under roots that cannot serve.
#[test]
fn a_bundle_without_a_usable_root_trusts_nothing() {
    let spec = signer("root");
    for (what, root) in [
        ("expired", spec.clone().with(|root| (root.not_before, root.not_after) = (-3600, -120))),
        ("not valid yet", spec.clone().with(|root| root.not_before = 600)),
        ("no CA", spec.clone().with(|root| root.basic_constraints = Some((false, None)))),
        ("no keyCertSign", spec.clone().with(|root| root.key_usage = Some((true, vec![DIGITAL_SIGNATURE])))),
        ("ID with a path", spec.clone().with(|root| root.uris = vec![ID.into()])),
    ] {
        let root = root.self_signed();
        let presented = root.issue(&leaf(ID)).chain(&[]);
        let error = judged_by_client(&presented, &bundle(&[&root]), ID).expect_err(what);
        assert_eq!((error.rule(), error.reason()), (31, "empty_bundle"), "{what}");
        assert!(stock_accepts(&presented, &bundle(&[&root])), "{what}: stock path validation accepts it");
    }
    let root = spec.self_signed();
    let presented = root.issue(&leaf(ID)).chain(&[]);
    assert_eq!(judged_by_client(&presented, &bundle(&[]), ID).unwrap_err().rule(), 31);
    assert!(judged_by_client(&presented, &bundle(&[&root]), ID).is_ok());
}

#[test]
fn an_expired_root_does_not_hide_its_successor_of_the_same_name() {
    let expired = signer("root").with(|root| (root.not_before, root.not_after) = (-3600, -120)).self_signed();
    let current = expired.issue_for(&signer("root"), &expired);
    let presented = expired.issue(&leaf(ID)).chain(&[]);
    assert!(judged_by_client(&presented, &bundle(&[&expired, &current]), ID).is_ok());
}

/// Rule 11.
#[test]
fn identities_are_compared_byte_for_byte() {
    let (presented, bundle) = under_root(leaf(ID));
    for other in ["spiffe://td.example/ns/shop/sa/Cart", "spiffe://td.example/ns/shop/sa/car", "spiffe://td.example/ns"]
    {
        let error = judged_by_client(&presented, &bundle, other).unwrap_err();
        assert_eq!((error.rule(), error.reason()), (11, "unexpected_identity"), "{other}");
    }
}

#[test]
fn broken_bytes_are_refused_without_panic() {
    let (presented, bundle) = under_root(leaf(ID));
    let now = SystemTime::now();
    let whole = presented.chain[0].to_vec();
    assert!(verify_chain(&presented.chain, &bundle, now).is_ok());
    assert_eq!(verify_chain(&[], &bundle, now).unwrap_err().reason(), "malformed");
    for length in 0..whole.len() {
        let cut = verify_chain(&[whole[..length].to_vec().into()], &bundle, now).unwrap_err();
        assert_eq!(cut.reason(), "malformed", "cut to {length} bytes");
    }
    let longer = [&whole[..], &[0]].concat();
    assert_eq!(verify_chain(&[longer.into()], &bundle, now).unwrap_err().reason(), "malformed");
    for position in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[position] ^= 0x04;
        let verdict = verify_chain(&[flipped.into()], &bundle, now);
        assert!(verdict.is_err(), "byte {position} is not covered by the signature");
    }
}

/// Rule 25, to the second.
#[test]
fn clocks_may_differ_by_less_than_a_minute() {
    let (presented, bundle) = under_root(leaf(ID));
    let not_after = verify_chain(&presented.chain, &bundle, SystemTime::now()).unwrap().not_after;
    let not_before = not_after - Duration::from_secs(3600);
    let at = |now| verify_chain(&presented.chain, &bundle, now).map_err(|error| error.reason()).map(drop);
    assert_eq!(at(not_after + Duration::from_secs(59)), Ok(()));
    assert_eq!(at(not_after + Duration::from_secs(60)), Err("expired"));
    assert_eq!(at(not_before - Duration::from_secs(59)), Ok(()));
    assert_eq!(at(not_before - Duration::from_secs(60)), Err("not_yet_valid"));
    assert_eq!(at(SystemTime::UNIX_EPOCH - Duration::from_secs(1)), Err("empty_bundle"));
}

/// Rule 26 the other way round: the right chain under the bundle of another domain.
#[test]
fn the_bundle_of_another_trust_domain_does_not_judge() {
    let (presented, mut bundle) = under_root(leaf(ID));
    bundle.trust_domain = TrustDomain::parse("other.example").unwrap();
    let error = verify_chain(&presented.chain, &bundle, SystemTime::now()).unwrap_err();
    assert!(matches!(&error, VerifyError::Broken { .. }));
    assert_eq!(error.rule(), 26);
}
