//! `weft policy diff`.
use serde_json::Value;

use crate::fixture::{Folder, READERS, call, policy};

/// What changes for one call under `spec`: `(change, after)`; `None`: nothing.
fn change(spec: &str, observed: Value) -> Option<(String, String)> {
    let folder = Folder::with_shop(&policy("p", spec));
    folder.write_calls(&[observed]);
    let ended = folder.weft(&["policy", "diff", "--resources", "shop", "--calls", "calls.json", "-o", "json"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let diff: Value = serde_json::from_str(&ended.stdout).expect("JSON");
    let row = diff["changes"].as_array().expect("a list").first()?;
    let text = |field: &str| row[field].as_str().expect("a text").to_owned();
    Some((text("change"), text("after")))
}

fn allow(rule: &str) -> String {
    format!("{{targetRefs: [{{kind: Service, name: inventory}}], action: Allow, rules: [{rule}]}}")
}

fn deny(rule: &str) -> String {
    format!(
        "{{action: Deny, rules: [{rule}]}}\n{}",
        policy("all", "{action: Allow, rules: [{}]}").trim_start_matches("---\n").replacen(
            "apiVersion",
            "---\napiVersion",
            1
        )
    )
}

#[test]
fn what_would_be_decided_otherwise_is_told_with_the_policy_that_would() {
    let get = |decision| call("inventory", "shop/orders", "GET /stock/{id}", decision);
    for (case, spec, observed, expected) in [
        ("allowed as before", READERS.to_owned(), get("allowed"), None),
        ("unlisted, now listed", READERS.to_owned(), get("unlisted"), None),
        ("refused, now allowed", READERS.to_owned(), get("refused"), Some(("allowed", "allowed by shop/p rule 0"))),
        ("no rule", READERS.replace("[orders]", "[users]"), get("allowed"), Some(("refused", "refused by shop/p"))),
        (
            "a rule that denies",
            deny("{to: [{methods: [GET]}]}"),
            get("allowed"),
            Some(("refused", "refused by shop/p rule 0")),
        ),
        ("bytes", allow("{to: [{ports: [5432]}]}"), call("inventory", "shop/orders", "bytes", "unlisted"), None),
        (
            "the default",
            READERS.to_owned(),
            call("orders", "shop/front", "GET /", "unlisted"),
            Some(("refused", "refused by default")),
        ),
    ] {
        let expected = expected.map(|(change, after)| (change.to_owned(), after.to_owned()));
        assert_eq!(change(&spec, observed), expected, "{case}");
    }
}

#[test]
fn what_is_not_kept_of_calls_makes_a_decision_depend_on_it_and_nothing_else_does() {
    let get = || call("inventory", "shop/orders", "GET /stock/{id}", "allowed");
    let outside = || call("inventory", "outside", "GET /stock/{id}", "allowed");
    for (case, spec, observed, depends) in [
        ("a header", allow("{when: [{header: x-a, in: [b]}]}"), get(), true),
        (
            "a header and a method that does not match",
            allow("{to: [{methods: [PUT]}], when: [{header: x-a, in: [b]}]}"),
            get(),
            false,
        ),
        (
            "a header beside a rule that allows all the same",
            allow("{when: [{header: x-a, in: [b]}]}, {}"),
            get(),
            false,
        ),
        ("a host", allow("{to: [{hosts: [a.test]}]}"), get(), true),
        (
            "an address of a caller with an identity",
            allow("{from: [{ipBlocks: [10.0.0.0/8]}, {namespaces: [shop]}]}"),
            get(),
            false,
        ),
        ("an address of one without", allow("{from: [{ipBlocks: [10.0.0.0/8]}]}"), outside(), true),
        ("one of the paths of a template", allow("{to: [{paths: [/stock/4711]}]}"), get(), true),
        ("all of them", allow("{to: [{paths: [/stock/4711, \"/stock/*\"]}]}"), get(), false),
        ("another path", allow("{to: [{paths: [/users/4711]}]}"), get(), false),
        (
            "a path that was not kept",
            allow("{to: [{paths: [/stock]}]}"),
            call("inventory", "shop/orders", "GET ?", "allowed"),
            true,
        ),
        ("a header that denies", deny("{when: [{header: x-a, in: [b]}]}"), get(), true),
        ("a path that denies", deny("{to: [{paths: [/stock/4711]}]}"), get(), true),
        ("a path that denies others", deny("{to: [{paths: [/users/4711]}]}"), get(), false),
        (
            "bytes under a header that denies",
            deny("{when: [{header: x-a, in: [b]}]}"),
            call("inventory", "shop/orders", "bytes", "allowed"),
            false,
        ),
    ] {
        let changed = change(&spec, observed);
        assert_eq!(changed.as_ref().is_some_and(|(change, _)| change == "depends"), depends, "{case}: {changed:?}");
    }
}

#[test]
fn the_exit_code_says_whether_a_change_was_found_that_must_not_be() {
    let folder = Folder::with_shop(&policy("p", READERS));
    let run = |more: &[&str]| {
        folder.weft(&[&["policy", "diff", "--resources", "shop", "--calls", "calls.json"], more].concat()).code
    };
    folder.write_calls(&[call("inventory", "shop/users", "GET /stock/{id}", "allowed")]);
    assert_eq!(run(&[]), Some(0));
    assert_eq!(run(&["--fail-on", "allowed"]), Some(0));
    assert_eq!(run(&["--fail-on", "allowed", "--fail-on", "refused"]), Some(1));
    folder.write("calls.json", "[]");
    assert_eq!(run(&["--fail-on", "refused"]), Some(2), "what cannot be read is never well");
    folder.write_calls(&[]);
    folder.write("shop/shop.yaml", "kind: AuthorizationPolicy\n");
    assert_eq!(run(&["--fail-on", "refused"]), Some(2));
}

#[test]
fn a_directory_of_policies_alone_knows_the_services_from_the_calls_and_judges_no_other_namespace() {
    let folder = Folder::new();
    folder.write("shop/p.yaml", &policy("p", READERS));
    let mut elsewhere = call("inventory", "shop/users", "GET /stock/{id}", "allowed");
    elsewhere["destination"]["namespace"] = "attic".into();
    folder.write_calls(&[call("inventory", "shop/users", "GET /stock/{id}", "allowed"), elsewhere]);
    let ended = folder.weft(&["policy", "diff", "--resources", "shop", "--calls", "calls.json"]);
    assert!(ended.stdout.contains("7 newly refused"), "{}", ended.stdout);
    assert!(ended.stdout.contains("Not judged: 7 calls") && ended.stdout.contains("attic"), "{}", ended.stdout);
}
