//! The plugin: one call of the container runtime, one thread, then the process ends.
//!
//! Promises: ADD answers with success only when the pod is known not to need rules or its rules are in force. What the
//! plugins before it found passes unaltered. DEL and GC have nothing to take away (rules end with the network namespace)
//! and always succeed. STATUS does not ask the agent: a "no" would make the whole node unready and evict what runs well
//! on it, while an ADD that has to wait is tried again by the kubelet.
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use serde_json::value::RawValue;

use super::netns;
use super::protocol::{self, Command, Configuration, Failure, code};
use super::wire::{self, Answer, Question, Redirect};

/// Reads the call from environment and standard input, does it, and answers on standard output.
pub(super) fn main() -> ExitCode {
    let mut input = String::new();
    let read = io::stdin().read_to_string(&mut input);
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let outcome = match protocol::command(variable("CNI_COMMAND").as_deref()) {
        Ok(Command::Del | Command::Gc) => Ok(None),
        Ok(Command::Version) => Ok(Some(protocol::version_report(&input).to_string())),
        Ok(command) => match read {
            Ok(_) => call(command, &input, &variable),
            Err(fault) => Err(Failure::new(code::IO, format!("standard input cannot be read: {fault}"))),
        },
        Err(failure) => Err(failure),
    };
    let (text, exit) = match outcome {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(text)) => (text, ExitCode::SUCCESS),
        Err(failure) => (failure.to_json(version_of(&input)).to_string(), ExitCode::FAILURE),
    };
    match writeln!(io::stdout(), "{text}") {
        Ok(()) => exit,
        Err(_) => ExitCode::FAILURE,
    }
}

/// The version to answer in, whatever else is wrong with the input.
fn version_of(input: &str) -> &'static str {
    let given = Configuration::parse(input).map(|configuration| configuration.cni_version);
    let known = given.ok().and_then(|given| protocol::VERSIONS.iter().find(|version| **version == given));
    known.copied().unwrap_or("1.0.0")
}

/// ADD, CHECK and STATUS; returns what to print.
fn call(command: Command, input: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<String>, Failure> {
    let configuration = Configuration::parse(input)?;
    if command == Command::Status {
        return Ok(None);
    }
    for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
        if variable(name).is_none() {
            return Err(Failure::new(code::INVALID_ENVIRONMENT, format!("{name} is not set")));
        }
    }
    let previous = configuration.prev_result.as_deref().map(RawValue::get).filter(|result| *result != "null");
    let previous = previous.ok_or_else(|| {
        Failure::new(
            code::INVALID_CONFIGURATION,
            "there is no prevResult: weft-cni adds to a network that another plugin made; name it after that plugin in \
             the list of plugins",
        )
    })?;
    let netns = variable("CNI_NETNS").unwrap_or_default();
    let pod = protocol::pod(&variable("CNI_ARGS").unwrap_or_default())?;
    if let Some(redirect) = wanted(&configuration, pod)? {
        match command {
            Command::Check => netns::check(Path::new(&netns))?,
            _ => netns::redirect(Path::new(&netns), &redirect)?,
        }
    }
    Ok((command == Command::Add).then(|| previous.to_owned()))
}

/// The rules that `pod` needs; none if it is left alone.
fn wanted(configuration: &Configuration, pod: Option<Question>) -> Result<Option<Redirect>, Failure> {
    // Not a pod of Kubernetes, so nothing that could be meshed.
    let Some(pod) = pod else { return Ok(None) };
    if configuration.exclude_namespaces.contains(&pod.namespace) {
        return Ok(None);
    }
    let not_ready = |why: &str| {
        Failure::new(
            code::TRY_AGAIN,
            format!(
                "weft-cni is not ready on this node, so it is not known whether {}/{} belongs to the mesh, and it may \
                 not start in the clear: {why}; the kubelet tries again. If this stays, see whether a pod of the \
                 DaemonSet weft-cni is ready on this node",
                pod.namespace, pod.name
            ),
        )
    };
    match wire::ask(Path::new(&configuration.socket), &pod) {
        Ok(Answer::Pass) => Ok(None),
        Ok(Answer::Redirect(redirect)) => Ok(Some(redirect)),
        Ok(Answer::Unknown { reason }) => Err(not_ready(&reason)),
        Ok(Answer::Invalid { reason }) => Err(Failure::new(code::INVALID_POD, reason)),
        Err(fault) => Err(not_ready(&format!("no answer from its agent at {}: {fault}", configuration.socket))),
    }
}
