//! `weft policy suggest`.
use serde_json::Value;

use crate::fixture::{Folder, call};

fn calls() -> Vec<Value> {
    let mut alone = call("-", "batch/nightly", "bytes", "unlisted");
    alone["destination"]["services"] = Value::Array(Vec::new());
    alone["destination"]["labels"] = serde_json::json!({"app": "db"});
    vec![
        call("inventory", "shop/orders", "GET /stock/{id}", "unlisted"),
        call("inventory", "shop/orders", "HEAD /stock/{id}", "unlisted"),
        call("inventory", "shop/orders", "POST /stock/{id}/reservations", "allowed"),
        call("inventory", "batch/nightly", "GET ?", "unlisted"),
        call("inventory", "shop/users", "GET /stock/{id}", "refused"),
        call("inventory", "outside", "GET /health", "unlisted"),
        call("orders", "shop/front", "POST /orders", "unlisted"),
        call("orders", "shop/mobile", "POST /orders", "unlisted"),
        call("orders", "shop/front", "OPTIONS *", "unlisted"),
        alone,
    ]
}

fn suggested(folder: &Folder, more: &[&str]) -> String {
    let ended = folder.weft(&[&["policy", "suggest", "--calls", "calls.json"], more].concat());
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    ended.stdout
}

#[test]
fn under_what_is_suggested_and_a_default_of_deny_the_same_calls_pass_and_no_others() {
    let folder = Folder::with_shop("");
    folder.write_calls(&calls());
    folder.write("shop/suggested.yaml", &suggested(&folder, &[]));
    let case = |from: &str, to: &str, rest: &str, expect: &str| {
        format!("- {{call: {{from: {from}, to: {to}{rest}}}, expect: {expect}}}\n")
    };
    let (inventory, orders) = ("shop/inventory", "shop/orders");
    let db = "{namespace: shop, labels: {app: db}}, port: 5432";
    let cases = [
        case("shop/orders", inventory, ", path: /stock/4711", "allowed"),
        case("shop/orders", inventory, ", method: HEAD, path: /stock/4711", "allowed"),
        case("shop/orders", inventory, ", method: POST, path: /stock/4711/reservations", "allowed"),
        case("batch/nightly", inventory, ", path: /whatever", "allowed"),
        case("shop/front", orders, ", method: POST, path: /orders", "allowed"),
        case("shop/mobile", orders, ", method: POST, path: /orders", "allowed"),
        case("batch/nightly", db, "", "allowed"),
        // Nobody called like this, or was refused.
        case("shop/orders", inventory, ", method: DELETE, path: /stock/4711", "refused"),
        case("shop/orders", inventory, ", path: /stock/4711/price", "refused"),
        case("shop/orders", inventory, "", "refused"),
        case("shop/orders", "shop/inventory, port: 9090", ", path: /stock/4711", "refused"),
        case("batch/nightly", inventory, ", method: POST, path: /whatever", "refused"),
        case("shop/users", inventory, ", path: /stock/4711", "refused"),
        case("outside", inventory, ", path: /health", "refused"),
        case("shop/front", orders, ", method: OPTIONS, path: '*'", "refused"),
        case("shop/front", db, "", "refused"),
    ];
    let ended = folder.test(&cases.concat(), &[]);
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);

    let diff = folder.weft(&["policy", "diff", "--resources", "shop", "--calls", "calls.json", "-o", "json"]);
    let diff: Value = serde_json::from_str(&diff.stdout).expect("JSON");
    let changes: Vec<_> = diff["changes"].as_array().expect("a list").iter().map(|row| &row["call"]).collect();
    // The two that it says it leaves out.
    assert_eq!(changes, ["GET /health", "OPTIONS *"], "{diff:#}");
}

#[test]
fn what_is_left_out_is_said_and_callers_without_identity_come_in_only_when_asked_for() {
    let folder = Folder::with_shop("");
    folder.write_calls(&calls());
    let text = suggested(&folder, &[]);
    for note in [
        "# refused, not allowed here: 7 × GET /stock/{id} by shop/users",
        "# without identity, not allowed here (--include-outside): 7 × GET /health by outside",
        "# no policy can name this path alone, not allowed here: 7 × OPTIONS * by shop/front",
        "# more paths than are kept apart",
    ] {
        assert!(text.contains(note), "{note}: {text}");
    }
    assert!(!text.contains("ipBlocks") && !text.contains("users]"), "{text}");
    folder.write("shop/suggested.yaml", &suggested(&folder, &["--include-outside"]));
    let cases = "- {call: {from: 192.0.2.1, to: shop/inventory, path: /health}, expect: allowed}\n- {call: {from: \
                 192.0.2.1, to: shop/inventory, path: /stock/1}, expect: refused}\n";
    let ended = folder.test(cases, &[]);
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
}

#[test]
fn the_same_calls_in_whatever_order_give_the_same_text() {
    let folder = Folder::with_shop("");
    folder.write_calls(&calls());
    let text = suggested(&folder, &[]);
    let mut reversed = calls();
    reversed.reverse();
    folder.write_calls(&reversed);
    assert_eq!(suggested(&folder, &[]), text);
    folder.write_calls(&[]);
    let ended = folder.weft(&["policy", "suggest", "--calls", "calls.json"]);
    assert!(ended.stderr.contains("there is nothing to suggest"), "{}", ended.stderr);
}
