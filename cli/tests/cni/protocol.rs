//! The plugin's side of the CNI specification, with agents that answer as each case wants.
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_loadtests::lab::testing::Test;

use crate::call::{Call, PREVIOUS};

pub const TESTS: &[Test] = &[
    ("version_names_the_versions_of_the_specification", version),
    ("a_call_that_is_wrong_is_refused_with_the_specifications_code", wrong_calls),
    ("deleting_collecting_and_status_succeed_whatever_state_the_agent_is_in", without_agent),
    ("without_agent_only_excluded_namespaces_and_what_is_no_pod_pass", absent_agent),
    ("an_agent_that_answers_nonsense_or_not_at_all_is_not_ready", bad_agent),
    ("a_pod_that_is_not_meshed_passes_and_the_agent_is_asked_for_it_by_name_and_uid", not_meshed),
    ("the_nodes_own_network_namespace_is_never_redirected", own_namespace),
    ("a_pod_that_asks_for_what_cannot_be_does_not_start", invalid_pod),
];

const NODE: &str = "/proc/self/ns/net";

/// An agent that gives `answer` to one question. Joining it gives the question.
fn agent(answer: &str) -> Result<(tempfile::TempDir, PathBuf, thread::JoinHandle<std::io::Result<String>>)> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("cni.sock");
    let listener = UnixListener::bind(&socket)?;
    let answer = answer.to_owned();
    let thread = thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        let mut question = String::new();
        BufReader::new(stream.try_clone()?).read_line(&mut question)?;
        stream.write_all(answer.as_bytes())?;
        Ok(question)
    });
    Ok((folder, socket, thread))
}

fn add(namespace: &str, socket: &Path) -> Call {
    Call::new("ADD", (namespace, "orders-1"), Path::new(NODE), socket)
}

fn nobody() -> &'static Path {
    Path::new("/nowhere/cni.sock")
}

fn version() -> Result<()> {
    for (input, expected) in [(r#"{"cniVersion":"0.4.0"}"#, "0.4.0"), ("", "1.1.0"), ("{", "1.1.0")] {
        let answer = Call::new("VERSION", ("", ""), Path::new(NODE), nobody()).input(input).run()?;
        let report: Value = serde_json::from_str(&answer.output)?;
        ensure!(answer.success && report["cniVersion"] == expected, "{answer:?}");
        for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
            ensure!(report["supportedVersions"].as_array().context("a list")?.contains(&json!(version)), "{answer:?}");
        }
    }
    Ok(())
}

fn wrong_calls() -> Result<()> {
    let good = add("shop", nobody());
    let settings = |settings: &str| good.clone().input(settings);
    for (call, code, hint) in [
        (good.clone().unset("CNI_COMMAND"), 4, "a container runtime calls"),
        (good.clone().set("CNI_COMMAND", "add"), 4, "ADD, CHECK"),
        (good.clone().unset("CNI_NETNS"), 4, "CNI_NETNS"),
        (good.clone().unset("CNI_CONTAINERID"), 4, "CNI_CONTAINERID"),
        (good.clone().set("CNI_IFNAME", ""), 4, "CNI_IFNAME"),
        (good.clone().set("CNI_ARGS", "K8S_POD_NAME=orders-1"), 4, "K8S_POD_NAMESPACE"),
        (settings(""), 6, "cannot be read"),
        (settings("{\"cniVersion\":\"1.0.0\",\"excludeNamespaces\":1}"), 6, "cannot be read"),
        (settings("{\"cniVersion\":\"9.0.0\"}"), 1, "1.1.0"),
        (settings("{\"name\":\"n\"}"), 1, "cniVersion"),
        (settings("{\"cniVersion\":\"1.0.0\"}"), 7, "prevResult"),
        (settings("{\"cniVersion\":\"1.0.0\",\"prevResult\":null}"), 7, "prevResult"),
    ] {
        call.run()?.failed(code, hint).with_context(|| format!("{call:?}"))?;
    }
    Ok(())
}

fn without_agent() -> Result<()> {
    let call = |command| Call::new(command, ("shop", "orders-1"), Path::new(NODE), nobody());
    for call in [
        call("DEL"),
        call("DEL").unset("CNI_NETNS").unset("CNI_ARGS"),
        call("DEL").set("CNI_NETNS", "/gone"),
        call("DEL").input(""),
        call("GC"),
        call("STATUS"),
    ] {
        call.run()?.succeeded("").with_context(|| format!("{call:?}"))?;
    }
    Ok(())
}

fn absent_agent() -> Result<()> {
    let refused = "weft-cni is not ready on this node";
    add("shop", nobody()).run()?.failed(11, refused)?;
    add("shop", nobody()).set("CNI_COMMAND", "CHECK").run()?.failed(11, refused)?;
    for namespace in ["kube-system", "weft-system"] {
        add(namespace, nobody()).run()?.succeeded(PREVIOUS)?;
        add(namespace, nobody()).set("CNI_COMMAND", "CHECK").run()?.succeeded("")?;
    }
    add("shop", nobody()).unset("CNI_ARGS").run()?.succeeded(PREVIOUS)
}

fn bad_agent() -> Result<()> {
    for (answer, hint) in [
        ("", "without an answer"),
        ("{\"answer\":\"pass\"", "without an answer"),
        ("nonsense\n", "no answer"),
        ("{\"answer\":\"what comes later\"}\n", "no answer"),
        ("{\"answer\":\"redirect\"}\n", "no answer"),
        ("{\"answer\":\"unknown\",\"reason\":\"the API server is away\"}\n", "the API server is away"),
    ] {
        let (_folder, socket, _) = agent(answer)?;
        let refused = add("shop", &socket).run()?;
        refused.failed(11, "weft-cni is not ready on this node")?;
        refused.failed(11, hint).with_context(|| answer.to_owned())?;
    }
    Ok(())
}

fn not_meshed() -> Result<()> {
    let (_folder, socket, agent) = agent("{\"answer\":\"pass\"}\n")?;
    add("shop", &socket).run()?.succeeded(PREVIOUS)?;
    let question = agent.join().map_err(|_| anyhow::anyhow!("the agent panicked"))??;
    let expected = json!({"namespace": "shop", "name": "orders-1", "uid": "orders-1-uid"});
    ensure!(serde_json::from_str::<Value>(&question)? == expected, "{question}");
    Ok(())
}

fn redirect(skip_inbound_ports: &str) -> String {
    let answer = json!({
        "answer": "redirect", "outboundPort": 4240, "inboundPort": 4243, "adminPort": 4291, "proxyUid": 2102,
        "proxyMark": null, "skipInboundPorts": skip_inbound_ports,
    });
    format!("{answer}\n")
}

fn own_namespace() -> Result<()> {
    for (netns, hint) in [(NODE, "the node's own"), ("/gone", "cannot be entered"), ("/dev/null", "cannot be entered")]
    {
        let (_folder, socket, _) = agent(&redirect(""))?;
        Call::new("ADD", ("shop", "orders-1"), Path::new(netns), &socket).run()?.failed(5, hint)?;
    }
    Ok(())
}

fn invalid_pod() -> Result<()> {
    let (_folder, socket, _) = agent(&redirect("ssh"))?;
    add("shop", &socket).run()?.failed(100, "write 22 or 8000-8010")?;
    let (_folder, socket, _) = agent("{\"answer\":\"invalid\",\"reason\":\"pod shop/orders-1: write 22\"}\n")?;
    add("shop", &socket).run()?.failed(100, "pod shop/orders-1: write 22")
}
