//! What plugin and agent say to each other: one line of JSON each way, over a Unix socket that root alone may use.
//!
//! Both are of one version but for the moments of an upgrade: fields are only ever added, and an answer that the plugin
//! does not know is no answer.
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use weft_proxy::redirect::{InitArgs, parse_ports, parse_subnets};

/// The longest line: annotations hold at most 256 KiB.
pub(super) const LINE_BYTES: u64 = 512 * 1024;
/// How long the plugin waits. The agent gives up before, so that its reason arrives; the kubelet has more patience.
const PATIENCE: Duration = Duration::from_secs(15);

/// Which pod is being started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Question {
    pub(super) namespace: String,
    pub(super) name: String,
    /// As the kubelet knows it; absent where the runtime does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) uid: Option<String>,
}

/// What is to be done with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub(super) enum Answer {
    /// Nothing: it is not meshed, or sees to it itself.
    Pass,
    /// Its connections are to be redirected.
    Redirect(Redirect),
    /// It must not start: what it says of itself cannot be done. Only an edit helps.
    Invalid { reason: String },
    /// It is not known yet what to do: the pod cannot be looked up now.
    Unknown { reason: String },
}

/// The flags of `weft-proxy init`, lists as written there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Redirect {
    pub(super) outbound_port: u16,
    pub(super) inbound_port: u16,
    pub(super) admin_port: u16,
    pub(super) proxy_uid: Option<u32>,
    pub(super) proxy_mark: Option<u32>,
    #[serde(default)]
    pub(super) skip_inbound_ports: String,
    #[serde(default)]
    pub(super) skip_outbound_ports: String,
    #[serde(default)]
    pub(super) skip_subnets: String,
}

impl Redirect {
    /// As `weft-proxy init` takes them.
    pub(super) fn init_args(&self) -> Result<InitArgs, String> {
        Ok(InitArgs {
            outbound_port: self.outbound_port,
            inbound_port: self.inbound_port,
            admin_port: self.admin_port,
            proxy_uid: self.proxy_uid,
            proxy_mark: self.proxy_mark,
            skip_inbound_ports: parse_ports(&self.skip_inbound_ports)?,
            skip_outbound_ports: parse_ports(&self.skip_outbound_ports)?,
            skip_subnets: parse_subnets(&self.skip_subnets)?,
            cleanup: false,
        })
    }
}

/// Asks the agent at `socket`.
pub(super) fn ask(socket: &Path, question: &Question) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(&line(question)?)?;
    let mut answer = String::new();
    BufReader::new(stream.take(LINE_BYTES)).read_line(&mut answer)?;
    if !answer.ends_with('\n') {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it ended without an answer"));
    }
    Ok(serde_json::from_str(&answer)?)
}

/// `message` as it is sent.
pub(super) fn line(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}
