//! Promises about how webhooks are judged.
use super::super::finding::Verdict;
use super::*;

#[test]
fn a_dry_run_that_was_not_injected_fails_unless_somebody_else_refused_it() {
    use Verdict::{Failure, Ok as Well, Warning};
    let refused = |message: &str| Injection::Refused(message.to_owned());
    for (injection, verdict) in [
        (Injection::Done, Well),
        (Injection::Left, Failure),
        (
            refused("pods \"weft-check-x\" is forbidden: violates PodSecurity \"baseline:latest\": capabilities"),
            Failure,
        ),
        (refused("ValidatingAdmissionPolicy 'weft-injected' with binding 'weft-injected' denied request: …"), Failure),
        (refused("failed calling webhook \"labelled.injector.weft.dev\": connection refused"), Failure),
        (refused("pods is forbidden: User \"x\" cannot create resource \"pods\" in the namespace \"shop\""), Warning),
        (refused("exceeded quota: compute, requested: pods=1"), Warning),
    ] {
        let finding = judge_injection("shop", &injection, "weft-system");
        assert_eq!(finding.verdict, verdict, "{injection:?}");
        assert_eq!(finding.remedy.is_some(), verdict != Well);
    }
}

#[test]
fn a_policy_is_judged_by_the_webhook_or_by_nobody() {
    use Verdict::{Failure, Ok as Well, Warning};
    for (outcome, verdict) in [
        (WrongPolicy::Refused, Well),
        (WrongPolicy::Taken, Failure),
        (WrongPolicy::Otherwise("failed calling webhook".into()), Failure),
        (WrongPolicy::Otherwise("User \"x\" cannot create resource".into()), Warning),
    ] {
        assert_eq!(judge_wrong_policy(&outcome, "weft-system").verdict, verdict, "{outcome:?}");
    }
}

#[test]
fn the_guard_must_be_there_and_deny() {
    use Verdict::{Failure, Ok as Well, Warning};
    for (guard, verdict) in [
        (Ok(Guard::Bound), Well),
        (Ok(Guard::Unbound), Failure),
        (Ok(Guard::Missing), Failure),
        (Err(NO_SUCH_KIND.to_owned()), Warning),
        (Err("forbidden".to_owned()), Warning),
    ] {
        assert_eq!(judge_guard(&guard).verdict, verdict, "{guard:?}");
    }
}

#[test]
fn the_dry_run_is_made_where_only_weft_could_refuse_it() {
    let namespace = |name: &str, meshed: bool, level: Option<&str>| NamespaceFacts {
        name: name.into(),
        inject: meshed.then_some(true),
        labels: level
            .map(|level| ("pod-security.kubernetes.io/enforce".to_owned(), level.to_owned()))
            .into_iter()
            .collect(),
        ..NamespaceFacts::default()
    };
    for (namespaces, expected) in [
        (vec![], "default"),
        (vec![namespace("bank", false, None)], "default"),
        (vec![namespace("bank", true, Some("restricted")), namespace("shop", true, None)], "shop"),
        (vec![namespace("bank", true, Some("restricted"))], "bank"),
        (vec![namespace("kube-system", true, None)], "default"),
    ] {
        assert_eq!(where_to_try(&namespaces), expected);
    }
}

#[test]
fn a_configuration_needs_a_bundle_that_verifies_what_is_served() {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let key = || KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key");
    let mut params = CertificateParams::new(vec![]).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let (own, foreign) = (key(), key());
    let root = |key: &KeyPair| params.self_signed(key).expect("a root").pem().into_bytes();
    let leaf = CertificateParams::new(vec!["weft.test".into()]).expect("parameters");
    let leaf = leaf.signed_by(&key(), &Issuer::from_params(&params, &own)).expect("a certificate").pem();
    let serving = Certificate::all(leaf.as_bytes()).expect("readable").remove(0);
    let facts = WebhookFacts {
        namespace: "weft-system".into(),
        injector: Ok(None),
        admission: Ok(None),
        guard: Ok(Guard::Bound),
        injection: None,
        wrong_policy: None,
    };
    let hooks =
        |bundles: Vec<Vec<u8>>, namespace: &str| Ok(Some(HookFacts { bundles, namespace: Some(namespace.into()) }));
    for (case, found, serving, verdict) in [
        ("missing", Ok(None), Some(&serving), Verdict::Failure),
        ("no bundle", hooks(vec![vec![]], "weft-system"), Some(&serving), Verdict::Failure),
        ("one of two without", hooks(vec![root(&own), vec![]], "weft-system"), Some(&serving), Verdict::Failure),
        ("of another", hooks(vec![root(&foreign)], "weft-system"), Some(&serving), Verdict::Failure),
        ("elsewhere", hooks(vec![root(&own)], "mesh"), Some(&serving), Verdict::Failure),
        (
            "well",
            hooks(vec![root(&own), [root(&foreign), root(&own)].concat()], "weft-system"),
            Some(&serving),
            Verdict::Ok,
        ),
        ("the Secret may not be read", hooks(vec![root(&foreign)], "weft-system"), None, Verdict::Ok),
        ("forbidden", Err("forbidden".to_owned()), None, Verdict::Warning),
    ] {
        assert_eq!(configuration("injector", INJECTOR, &found, &facts, serving).verdict, verdict, "{case}");
    }
}
