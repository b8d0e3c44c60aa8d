//! `weft policy test`.
use serde_json::Value;

use crate::fixture::{Folder, READERS, policy};

#[test]
fn the_exit_code_says_whether_all_is_as_expected_or_the_files_are_faulty() {
    let folder = Folder::with_shop(&policy("readers", READERS));
    let case = |expect: &str| {
        format!("call: {{from: orders, to: shop/inventory, path: /stock/1}}\nexpect: {expect}\nby: readers\n")
    };
    for (cases, code, said) in [
        (case("allowed"), 0, "1 case, all as expected."),
        (case("refused"), 1, "1 case, 1 not as expected."),
        (case("perhaps"), 2, "weft: tests.yaml:2: document 1: `expect` is `perhaps`. Write `allowed`"),
        (String::new(), 2, "the text holds no case"),
    ] {
        let ended = folder.test(&cases, &[]);
        let all = format!("{}{}", ended.stdout, ended.stderr);
        assert_eq!(ended.code, Some(code), "{cases}{all}");
        assert!(all.contains(said), "{cases}{all}");
    }
    let ended = folder.weft(&["policy", "test", "--resources", "shop", "nowhere.yaml"]);
    assert_eq!((ended.code, ended.stderr.contains("nowhere.yaml")), (Some(2), true), "{}", ended.stderr);
    let ended = folder.weft(&["policy", "test", "--resources", "nowhere", "tests.yaml"]);
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
}

#[test]
fn a_faulty_policy_is_named_with_file_document_field_and_remedy() {
    let folder =
        Folder::with_shop(&policy("readers", "{action: Allow, rules: [{from: [{serviceAcounts: [orders]}]}]}"));
    let ended = folder.test("{call: {from: orders, to: shop/inventory}, expect: refused}", &[]);
    assert_eq!(ended.code, Some(2), "what is faulty is never judged");
    for part in ["shop/shop.yaml:", "AuthorizationPolicy shop/readers", "`serviceAcounts`", "Write `serviceAccounts`."]
    {
        assert!(ended.stderr.contains(part), "{part}: {}", ended.stderr);
    }
    assert_eq!(ended.stdout, "");
}

#[test]
fn who_decides_is_checked_by_its_full_name_or_its_own() {
    let folder = Folder::with_shop(&policy("readers", READERS));
    for (by, code) in [("readers", 0), ("shop/readers", 0), ("attic/readers", 1), ("default", 1), ("eaders", 1)] {
        let case = format!("{{call: {{from: orders, to: shop/inventory, path: /stock/1}}, expect: allowed, by: {by}}}");
        assert_eq!(folder.test(&case, &[]).code, Some(code), "{by}");
    }
}

#[test]
fn what_failed_is_explained_by_the_field_that_did_not_match() {
    let folder = Folder::with_shop(&policy("readers", READERS));
    let ended = folder.test("{call: {from: users, to: shop/inventory, path: /stock/1}, expect: allowed}", &[]);
    let said = "shop/readers (Allow) rule 0: caller shop/users is not in [shop/orders]";
    assert!(ended.stdout.contains(said), "{}", ended.stdout);
}

#[test]
fn programs_are_told_the_same_as_json_and_as_junit() {
    let folder = Folder::with_shop(&policy("readers", READERS));
    let cases = "- {name: 'reads <all>', call: {from: orders, to: shop/inventory, path: /stock/1}, expect: allowed}\n- \
                 {call: {from: users, to: shop/inventory, path: /stock/1}, expect: allowed}\n";
    let json: Value = serde_json::from_str(&folder.test(cases, &["-o", "json"]).stdout).expect("JSON");
    assert_eq!((&json["passed"], &json["failed"]), (&1.into(), &1.into()));
    let (first, second) = (&json["cases"][0], &json["cases"][1]);
    assert_eq!((&first["by"], &first["rule"], &first["status"]), (&"shop/readers".into(), &0.into(), &200.into()));
    assert_eq!((&second["decision"], &second["line"]), (&"refused".into(), &2.into()));
    let junit = folder.test(cases, &["-o", "junit"]).stdout;
    for part in [
        "tests=\"2\" failures=\"1\"",
        "classname=\"tests.yaml\" name=\"reads &lt;all&gt; (line 1)\"/>",
        "<failure message=\"expected allowed, but: refused",
    ] {
        assert!(junit.contains(part), "{part}: {junit}");
    }
}

#[test]
fn each_workload_behind_a_service_must_do_what_is_expected() {
    let workload = |name: &str, tier: &str, address: &str| {
        format!(
            "---\napiVersion: policy.weft.dev/v1alpha1\nkind: Workload\nmetadata: {{name: {name}, namespace: shop, \
             labels: {{app: inventory, tier: {tier}}}}}\nspec: {{addresses: [{address}]}}\n"
        )
    };
    let only_blue = policy("blue", "{selector: {matchLabels: {tier: blue}}, action: Allow, rules: [{}]}");
    let blue = workload("inventory-1", "blue", "10.0.0.1");
    let folder = Folder::with_shop(&format!("{only_blue}{blue}"));
    let case = "{call: {from: orders, to: shop/inventory, path: /}, expect: allowed}";
    assert_eq!(folder.test(case, &[]).code, Some(0));
    let folder = Folder::with_shop(&format!("{only_blue}{blue}{}", workload("inventory-2", "green", "10.0.0.2")));
    let ended = folder.test(case, &[]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.stdout.contains("at workload shop/inventory-2"), "{}", ended.stdout);
}

#[test]
fn a_destination_is_a_service_a_workload_or_a_pod_by_its_labels() {
    let workload = "---\napiVersion: policy.weft.dev/v1alpha1\nkind: Workload\nmetadata: {name: inventory-1, namespace: \
                    shop, labels: {app: inventory}}\nspec: {addresses: [10.0.0.1], ports: [{port: 8080}]}\n";
    let folder = Folder::with_shop(&format!("{}{workload}", policy("readers", READERS)));
    for (to, code, said) in [
        ("shop/inventory", 0, ""),
        ("shop/inventory-1", 0, ""),
        ("{namespace: shop, labels: {app: inventory}}, port: 8080", 0, ""),
        ("{namespace: shop, labels: {app: orders}}, port: 8080", 1, "default"),
        ("{namespace: shop, labels: {app: inventory}}", 2, "`call.port` is missing"),
        ("shop/nobody", 2, "there is no such Service or Workload"),
        ("shop/inventory, port: 80", 2, "80 leads to 8080"),
        ("shop/inventory, port: 9090", 0, ""),
    ] {
        let ended = folder.test(&format!("{{call: {{from: orders, to: {to}, path: /stock/1}}, expect: allowed}}"), &[]);
        let all = format!("{}{}", ended.stdout, ended.stderr);
        assert_eq!(ended.code, Some(code), "{to}: {all}");
        assert!(all.contains(said), "{to}: {all}");
    }
}

#[test]
fn what_kubectl_prints_is_a_directory_of_resources() {
    let folder = Folder::new();
    folder.write(
        "shop/all.yaml",
        r#"
apiVersion: v1
kind: List
metadata: {resourceVersion: ""}
items:
- apiVersion: v1
  kind: Namespace
  metadata: {name: shop, uid: 1b2c, creationTimestamp: "2026-01-01T00:00:00Z", annotations: {weft.dev/default-policy: deny}}
  spec: {finalizers: [kubernetes]}
  status: {phase: Active}
- apiVersion: v1
  kind: Service
  metadata: {name: inventory, namespace: shop, labels: {app: inventory}}
  spec: {clusterIP: 10.96.0.12, clusterIPs: [10.96.0.12], type: ClusterIP, selector: {app: inventory}, ports: [{name: http, port: 80, protocol: TCP, targetPort: 8080}]}
  status: {loadBalancer: {}}
- apiVersion: policy.weft.dev/v1alpha1
  kind: AuthorizationPolicy
  metadata: {name: readers, namespace: shop, generation: 2, managedFields: [{manager: kubectl}]}
  spec: {targetRefs: [{kind: Service, name: inventory}], action: Allow, rules: [{from: [{serviceAccounts: [orders]}]}]}
  status: {conditions: [{type: Accepted, status: "True"}]}
"#,
    );
    let cases = "- {call: {from: orders, to: shop/inventory}, expect: allowed, by: readers}\n- {call: {from: users, to: \
                 shop/inventory}, expect: refused}\n";
    let ended = folder.test(cases, &[]);
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
}
