//! The rules of the house that crate boundaries and `deny.toml` cannot keep: which module may name what.
//!
//! Reads the sources as tokens, comments and literals left out, and resolves `use` trees and paths in the text. It sees
//! names, not types: a module that is handed a value of a foreign type without naming it is not caught.
use std::fs;
use std::path::{Path, PathBuf};

/// Some files must not name some paths.
struct Rule {
    what: &'static str,
    /// Files below one of these, relative to the repository; a folder ends with `/`.
    within: &'static [&'static str],
    /// But not these.
    except: &'static [&'static str],
    /// Beginnings of paths, whole segments.
    never: &'static [&'static str],
}

const INPUT_AND_OUTPUT: &[&str] = &[
    "std::env",
    "std::fs",
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::net::ToSocketAddrs",
    "std::net::UdpSocket",
    "std::os",
    "std::process",
    "std::thread",
    "std::time::Instant::now",
    "std::time::SystemTime::now",
    "nix",
    "notify",
    "socket2",
    "tokio",
];

const RULES: &[Rule] = &[
    // 1
    Rule {
        what: "certs imports no other member",
        within: &["certs/src/"],
        except: &[],
        never: &["weft", "weft_api", "weft_control_plane", "weft_loadtests", "weft_proxy"],
    },
    Rule {
        what: "certs does no I/O and takes the clock as an argument",
        within: &["certs/src/"],
        except: &[],
        never: INPUT_AND_OUTPUT,
    },
    Rule {
        what: "of the members, the contract imports certs alone",
        within: &["control-plane/api/src/"],
        except: &[],
        never: &["weft", "weft_control_plane", "weft_loadtests", "weft_proxy"],
    },
    Rule {
        what: "resources and policy engine do no I/O and read no clock",
        within: &["control-plane/api/src/"],
        except: &[],
        never: INPUT_AND_OUTPUT,
    },
    // 2
    Rule {
        what: "the sidecar does not know the control plane, nor the lab or the command line",
        within: &["proxy/src/"],
        except: &[],
        never: &["weft", "weft_control_plane", "weft_loadtests"],
    },
    Rule {
        what: "the control plane does not know the sidecar, nor the lab or the command line",
        within: &["control-plane/src/", "control-plane/api/src/"],
        except: &[],
        never: &["weft", "weft_loadtests", "weft_proxy"],
    },
    // 3
    Rule {
        what: "stages take values and return facts",
        within: &["proxy/src/stage/"],
        except: &[],
        never: &["crate::admin", "crate::app", "crate::feed", "crate::path", "crate::telemetry", "crate::worker"],
    },
    Rule {
        what: "inbound does not know outbound",
        within: &["proxy/src/path/inbound.rs", "proxy/src/path/inbound/"],
        except: &[],
        never: &["crate::path::outbound"],
    },
    Rule {
        what: "outbound does not know inbound",
        within: &["proxy/src/path/outbound.rs", "proxy/src/path/outbound/"],
        except: &[],
        never: &["crate::path::inbound"],
    },
    Rule {
        what: "only app builds feeds",
        within: &["proxy/src/"],
        except: &["proxy/src/app.rs", "proxy/src/feed/"],
        never: &["crate::feed"],
    },
    // A feed speaks TLS as the data path does and publishes what the stages read: it may use stages, and nothing above.
    Rule {
        what: "feeds know neither the path nor telemetry: they tell their events to whom app names",
        within: &["proxy/src/feed/"],
        except: &[],
        never: &["crate::admin", "crate::app", "crate::path", "crate::telemetry", "crate::worker"],
    },
    Rule {
        what: "telemetry and the redirect are told things and ask nobody",
        within: &["proxy/src/telemetry/", "proxy/src/redirect/"],
        except: &[],
        never: &["crate::admin", "crate::app", "crate::feed", "crate::path", "crate::stage", "crate::worker"],
    },
    // 4
    Rule {
        what: "model and compile do no I/O and read no clock",
        within: &[
            "control-plane/src/model.rs",
            "control-plane/src/model/",
            "control-plane/src/compile.rs",
            "control-plane/src/compile/",
        ],
        except: &[],
        never: INPUT_AND_OUTPUT,
    },
    Rule {
        what: "no arrow returns: sources know nothing that comes after them",
        within: &["control-plane/src/source/"],
        except: &[],
        never: &["crate::app", "crate::ca", "crate::compile", "crate::model", "crate::publish", "crate::server"],
    },
    Rule {
        what: "no arrow returns: the model knows its events only",
        within: &["control-plane/src/model.rs", "control-plane/src/model/"],
        except: &[],
        never: &["crate::app", "crate::ca", "crate::compile", "crate::publish", "crate::server"],
    },
    Rule {
        what: "no arrow returns: compiling knows the model only",
        within: &["control-plane/src/compile.rs", "control-plane/src/compile/"],
        except: &["control-plane/src/compile/routes/tests.rs"],
        never: &["crate::app", "crate::ca", "crate::publish", "crate::server", "crate::source"],
    },
    Rule {
        what: "the stream's server sees what is published, not the mesh",
        within: &["control-plane/src/server.rs"],
        except: &[],
        never: &["crate::app", "crate::ca", "crate::compile", "crate::model", "crate::source"],
    },
    // 5
    Rule {
        what: "Kubernetes types stay at the edge",
        within: &["certs/", "cli/", "control-plane/", "loadtests/", "proxy/"],
        except: &[
            "cli/src/cni/",
            "cli/src/kubernetes/",
            "cli/tests/kubernetes/",
            "control-plane/src/app.rs",
            "control-plane/src/app/",
            "control-plane/src/ca/",
            "control-plane/src/cluster/",
            "control-plane/src/source/kubernetes.rs",
            "control-plane/src/source/kubernetes/",
            "control-plane/src/webhook/",
        ],
        never: &["k8s_openapi", "kube"],
    },
    // The listener hands its connections to tonic, app puts the services together, telemetry calls the collector.
    Rule {
        what: "gRPC stays in the contract and at its two ends",
        within: &[
            "certs/src/",
            "cli/src/",
            "control-plane/src/",
            "control-plane/api/src/",
            "loadtests/src/",
            "proxy/src/",
        ],
        except: &[
            "control-plane/api/src/lib.rs",
            "control-plane/api/src/wire.rs",
            "control-plane/api/src/wire/",
            "control-plane/src/app.rs",
            "control-plane/src/ca/",
            "control-plane/src/listener.rs",
            "control-plane/src/replicas.rs",
            "control-plane/src/replicas/",
            "control-plane/src/server.rs",
            "proxy/src/feed/",
            "proxy/src/telemetry/",
        ],
        never: &["prost", "tonic", "tonic_prost", "weft_api::wire::proto"],
    },
    // What the certs crate made is held as a configuration by who connects (`stage/connect.rs`) and who accepts. The
    // kubelet's checks judge no certificate, which the certs crate has no place for.
    Rule {
        what: "TLS types stay in certs and where connections are made",
        within: &["cli/src/", "control-plane/api/src/", "control-plane/src/", "proxy/src/"],
        except: &[
            "control-plane/src/ca/",
            "control-plane/src/listener.rs",
            "control-plane/src/replicas/ask.rs",
            "control-plane/src/webhook/",
            "proxy/src/probe/tls.rs",
            "proxy/src/probe/tests.rs",
            "proxy/src/stage/connect.rs",
            "proxy/src/stage/tls.rs",
            "proxy/src/stage/transport.rs",
        ],
        never: &["rustls", "tokio_rustls"],
    },
    Rule {
        what: "Prometheus and OpenTelemetry stay in telemetry",
        within: &[
            "certs/src/",
            "cli/src/",
            "control-plane/src/",
            "control-plane/api/src/",
            "loadtests/src/",
            "proxy/src/",
        ],
        except: &["control-plane/src/admin.rs", "control-plane/src/metrics.rs", "proxy/src/telemetry/"],
        never: &[
            "opentelemetry",
            "opentelemetry_otlp",
            "opentelemetry_proto",
            "opentelemetry_sdk",
            "prometheus_client",
        ],
    },
];

/// The repository.
fn house() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every source file, relative to the repository, with its text.
fn sources() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for room in ["certs", "cli", "control-plane", "loadtests", "proxy"] {
        collect(&house(), Path::new(room), &mut found);
    }
    assert!(found.len() > 50, "only {} source files found: the test looks in the wrong place", found.len());
    found
}

fn collect(root: &Path, below: &Path, found: &mut Vec<(String, String)>) {
    let entries = fs::read_dir(root.join(below)).expect("a folder of the repository can be listed");
    for entry in entries.map(|entry| entry.expect("a folder of the repository can be listed")) {
        let path = below.join(entry.file_name());
        if entry.file_type().expect("known").is_dir() {
            if !path.ends_with("target") {
                collect(root, &path, found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(root.join(&path)).expect("a source file is UTF-8");
            found.push((path.to_string_lossy().into_owned(), text));
        }
    }
}

/// Words, `::` and single other characters; comments, texts, characters and lifetimes are left out.
fn tokens(text: &str) -> Vec<String> {
    let bytes = text.as_bytes();
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &text[at..];
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80;
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(hashes) = raw_text(rest) {
            let open = rest.find('"').expect("checked") + 1;
            let close = format!("\"{}", "#".repeat(hashes));
            rest[open..].find(&close).map_or(rest.len(), |end| open + end + close.len())
        } else if bytes[at] == b'"' {
            quoted(&bytes[at..], b'"')
        } else if bytes[at] == b'\'' {
            // A character has its second quotation mark within a few bytes; a lifetime has none.
            let escaped = bytes.get(at + 1) == Some(&b'\\');
            let one = rest[1..].chars().next().map_or(0, char::len_utf8);
            if escaped || bytes.get(at + 1 + one) == Some(&b'\'') { quoted(&bytes[at..], b'\'') } else { 1 }
        } else if rest.starts_with("::") {
            tokens.push("::".to_owned());
            2
        } else if word(bytes[at]) {
            let length = rest.bytes().take_while(|byte| word(*byte)).count();
            tokens.push(rest[..length].to_owned());
            length
        } else {
            if !bytes[at].is_ascii_whitespace() {
                tokens.push(char::from(bytes[at]).to_string());
            }
            1
        };
        at += length;
    }
    tokens
}

/// The hashes of a raw text (`r#"…"#`) that begins here.
fn raw_text(rest: &str) -> Option<usize> {
    let rest = rest.strip_prefix("br").or_else(|| rest.strip_prefix('r'))?;
    let hashes = rest.bytes().take_while(|byte| *byte == b'#').count();
    rest[hashes..].starts_with('"').then_some(hashes)
}

/// Bytes up to and with the closing mark.
fn quoted(bytes: &[u8], mark: u8) -> usize {
    let mut at = 1;
    while at < bytes.len() && bytes[at] != mark {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    at + 1
}

/// Tests stand last in a file, and may know more than what they test.
fn without_tests(tokens: &[String]) -> &[String] {
    const TESTS: [&str; 9] = ["#", "[", "cfg", "(", "test", ")", "]", "mod", "tests"];
    match tokens.windows(TESTS.len()).position(|window| window == TESTS) {
        Some(start) => &tokens[..start],
        None => tokens,
    }
}

/// Every path that the tokens of `file` name, from the crate's root where it is the crate's own.
fn paths(file: &str, tokens: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let after_path = at > 0 && matches!(tokens[at - 1].as_str(), "::" | ".");
        let starts = tokens.get(at + 1).is_some_and(|next| next == "::") && !after_path;
        // `use tokio;` and `extern crate x` have no `::`, and neither hides anything.
        let alone = at > 0 && tokens[at - 1] == "use";
        if (starts || alone) && is_word(&tokens[at]) {
            at = tree(tokens, at, &[], &mut found);
        } else {
            at += 1;
        }
    }
    // A name that was brought in by `use` is the beginning of longer paths in the same file.
    let imported: Vec<(String, String)> =
        found.iter().filter_map(|path| Some((path.rsplit("::").next()?.to_owned(), path.clone()))).collect();
    let mut absolute: Vec<String> = found.iter().map(|path| from_root(file, path)).collect();
    for path in &found {
        let (first, rest) = path.split_once("::").unwrap_or((path, ""));
        for (_, whole) in imported.iter().filter(|(name, whole)| name == first && whole != path && whole.contains("::"))
        {
            absolute.push(from_root(file, &format!("{whole}::{rest}")));
        }
    }
    absolute
}

/// Reads `a::b::{c, d::e}` from `at`; returns where it ends.
fn tree(tokens: &[String], mut at: usize, before: &[String], found: &mut Vec<String>) -> usize {
    let mut path = before.to_vec();
    loop {
        match tokens.get(at).map(String::as_str) {
            Some("{") if !path.is_empty() => {
                at += 1;
                while at < tokens.len() && tokens[at] != "}" {
                    at = match tokens[at].as_str() {
                        "," => at + 1,
                        // `{self}` is the module itself.
                        "self" => {
                            found.push(path.join("::"));
                            at + 1
                        }
                        _ => tree(tokens, at, &path, found).max(at + 1),
                    };
                }
                return at + 1;
            }
            Some(word) if is_word(word) => {
                path.push(word.to_owned());
                at += 1;
            }
            _ => break,
        }
        if tokens.get(at).map(String::as_str) != Some("::") {
            break;
        }
        at += 1;
    }
    found.push(path.join("::"));
    at
}

fn is_word(token: &str) -> bool {
    token.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
}

/// `super::x` and `self::x` as `crate::…`, by the place of the file.
fn from_root(file: &str, path: &str) -> String {
    let inside = file.split_once("/src/").map_or("", |(_, inside)| inside).trim_end_matches(".rs");
    let mut module: Vec<&str> =
        inside.split('/').filter(|part| !matches!(*part, "" | "lib" | "main" | "mod")).collect();
    let mut rest = path;
    if let Some(own) = rest.strip_prefix("self::") {
        rest = own;
    } else if !rest.starts_with("super::") {
        return path.to_owned();
    }
    while let Some(upwards) = rest.strip_prefix("super::") {
        module.pop();
        rest = upwards;
    }
    std::iter::once("crate").chain(module).chain(std::iter::once(rest)).collect::<Vec<_>>().join("::")
}

/// What `text`, standing at `file`, breaks.
fn broken(file: &str, text: &str) -> Vec<String> {
    let tokens = tokens(text);
    let named = paths(file, without_tests(&tokens));
    let mut broken = Vec::new();
    if tokens.iter().any(|token| token == "unsafe") {
        broken.push(format!("{file}: `unsafe` is nowhere"));
    }
    let stands = |places: &[&str]| {
        places.iter().any(|place| file == *place || (place.ends_with('/') && file.starts_with(place)))
    };
    for rule in RULES.iter().filter(|rule| stands(rule.within) && !stands(rule.except)) {
        for path in &named {
            let begins = |never: &&&str| {
                path == **never || path.strip_prefix(**never).is_some_and(|rest| rest.starts_with("::"))
            };
            if rule.never.iter().any(|never| begins(&never)) {
                broken.push(format!("{file} names {path}: {}", rule.what));
            }
        }
    }
    broken.sort();
    broken.dedup();
    broken
}

#[test]
fn every_module_names_only_what_it_may() {
    let faults: Vec<String> = sources().iter().flat_map(|(file, text)| broken(file, text)).collect();
    assert!(faults.is_empty(), "rules of the house are broken:\n  {}", faults.join("\n  "));
}

#[test]
fn every_rule_speaks_of_files_that_are_there() {
    // Folders and files that come later: what they may do is known before they are.
    let later = ["control-plane/src/source/kubernetes.rs", "control-plane/src/webhook/"];
    for rule in RULES {
        let all = sources();
        let there = |place: &&str| all.iter().any(|(file, _)| file == place || file.starts_with(*place));
        assert!(rule.within.iter().any(there), "{}: none of {:?} is there", rule.what, rule.within);
        let gone: Vec<_> = rule.except.iter().filter(|place| !there(place) && !later.contains(place)).collect();
        assert!(gone.is_empty(), "{}: {gone:?} is not there any more", rule.what);
    }
}

#[test]
fn every_member_keeps_the_lints_of_the_workspace() {
    for member in ["certs", "cli", "control-plane", "control-plane/api", "loadtests", "proxy"] {
        let manifest = fs::read_to_string(house().join(member).join("Cargo.toml")).expect("a member has a manifest");
        assert!(manifest.contains("[lints]\nworkspace = true"), "{member}/Cargo.toml lacks `[lints] workspace = true`");
    }
}

#[test]
fn a_breach_is_found_however_it_is_written() {
    for (file, text, is_breach) in [
        ("proxy/src/stage/tls.rs", "use crate::telemetry::Party;", true),
        ("proxy/src/stage/tls.rs", "use crate::{stage::accept, feed::{self, channel}};", true),
        ("proxy/src/stage/tls.rs", "fn f() { crate::path::until(x); }", true),
        ("proxy/src/stage/tls.rs", "use super::super::telemetry::Party;", true),
        ("proxy/src/stage/mod.rs", "use super::telemetry::Party;", true),
        (
            "proxy/src/stage/tls.rs",
            "use super::accept; // crate::telemetry::Party\nconst A: &str = \"crate::feed::x\";",
            false,
        ),
        ("proxy/src/stage/tls.rs", "fn f() {}\n#[cfg(test)]\nmod tests { use crate::telemetry::Party; }", false),
        ("proxy/src/path/inbound.rs", "use super::outbound;", true),
        ("proxy/src/path/inbound.rs", "use super::{http, outbound::HEAD_START};", true),
        ("proxy/src/path/outbound.rs", "use crate::path::inbound::handle;", true),
        ("proxy/src/path/mod.rs", "use self::outbound::handle;", false),
        ("proxy/src/worker.rs", "let x = crate::feed::identity::run(a);", true),
        ("certs/src/key.rs", "use std::{fmt, fs};", true),
        ("certs/src/key.rs", "use std::time::SystemTime;\nfn f() -> SystemTime { SystemTime::now() }", true),
        ("certs/src/key.rs", "use std::time::SystemTime;\nfn f(now: SystemTime) {}", false),
        ("certs/src/key.rs", "use weft_api::resource;", true),
        ("control-plane/src/server.rs", "use crate::model::Model;", true),
        ("control-plane/src/model.rs", "use tokio::sync::watch;", true),
        ("control-plane/src/publish.rs", "use tonic::Status;", true),
        ("proxy/src/app.rs", "use prometheus_client::registry::Registry;", true),
        ("proxy/src/app.rs", "fn f(c: rustls::ServerConfig) {}", true),
        ("proxy/src/app.rs", "fn f() { unsafe { g() } } // a reason", true),
        (
            "proxy/src/app.rs",
            "#![forbid(unsafe_code)] // no unsafe here\nconst A: &str = r#\"unsafe \" \"#; fn f<'a>(c: &'a str) { h('\"'); }",
            false,
        ),
    ] {
        let found = broken(file, text);
        assert_eq!(!found.is_empty(), is_breach, "{file}: {text}\nfound: {found:?}");
    }
}
