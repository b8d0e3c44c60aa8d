//! The chain of hashes: how a line follows from the one before it, and whether a log is whole.
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use serde_json::{Map, Value};

use super::{FILE, KEPT};

/// The `previous` of the first line.
const START: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// Lines are shorter than this, in bytes.
const LONGEST_LINE: u64 = 16 * 1024;

/// Where the chain ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Number of the last line, counted from 1 over all files.
    pub number: u64,
    /// Its hash, in hexadecimal.
    pub hash: String,
}

/// Why the log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The operating system refused.
    #[error("{}: {source}", .path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process writes to it.
    #[error("{}: another control plane uses this state; stop it, or give this one another --state", .0.display())]
    Locked(PathBuf),
    /// The last line is none, so that nothing can follow from it.
    #[error("{0}: the last line {fault}; keep the file as evidence, and move it away to begin a new one: mv {0} {0}.broken", .path.display())]
    LastLine {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        fault: String,
    },
    /// A line is missing or altered.
    #[error("{}:{line}: {fault}", .path.display())]
    Broken {
        /// Which file.
        path: PathBuf,
        /// Which line of it, counted from 1.
        line: u64,
        /// What is wrong.
        fault: String,
    },
}

/// Reads the whole log of `directory`, the files put aside first, and checks each line against the one before it. Returns
/// where the chain ends, and the number of the first line that is still there.
///
/// # Errors
/// The first line that is missing or altered, or a file that cannot be read.
pub fn verify(directory: &Path) -> Result<(u64, Link), AuditError> {
    let path = directory.join(FILE);
    let mut chain: Option<(u64, Link)> = None;
    for path in (1..=KEPT).rev().map(|number| aside(&path, number)).chain([path.clone()]) {
        let io = |source| AuditError::Io { path: path.clone(), source };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(fault) if fault.kind() == io::ErrorKind::NotFound && path != directory.join(FILE) => continue,
            Err(source) => return Err(io(source)),
        };
        for (text, line) in lines(file).zip(1..) {
            let broken = |fault: String| AuditError::Broken { path: path.clone(), line, fault };
            let (previous, link) = parse(&text.map_err(io)?).map_err(broken)?;
            let (first_number, before) = match &chain {
                Some((first_number, before)) => (*first_number, before.clone()),
                // Older files were deleted by age; what they ended with is not known.
                None if link.number > 1 => (link.number, Link { number: link.number - 1, hash: previous.clone() }),
                None => (1, first()),
            };
            if link.number != before.number + 1 {
                return Err(broken(format!(
                    "line {} comes after line {}: what was between is missing",
                    link.number, before.number
                )));
            }
            if previous != before.hash {
                return Err(broken("does not follow from the line before it: one of the two was altered".to_owned()));
            }
            chain = Some((first_number, link));
        }
    }
    Ok(chain.unwrap_or_else(|| (1, first())))
}

pub(super) fn unusable(path: &Path, fault: &str) -> AuditError {
    AuditError::LastLine { path: path.to_owned(), fault: fault.to_owned() }
}

pub(super) fn first() -> Link {
    Link { number: 0, hash: START.to_owned() }
}

pub(super) fn aside(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

/// The length of all whole lines, and the last of them.
pub(super) fn end_of(file: &mut File) -> io::Result<(u64, Option<Vec<u8>>)> {
    let length = file.seek(SeekFrom::End(0))?;
    let start = length.saturating_sub(2 * LONGEST_LINE);
    let mut tail = vec![0; usize::try_from(length - start).unwrap_or(0)];
    file.read_exact_at(&mut tail, start)?;
    let Some(end) = tail.iter().rposition(|byte| *byte == b'\n') else { return Ok((0, None)) };
    let begin = tail[..end].iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    Ok((start + end as u64 + 1, Some(tail[begin..end].to_vec())))
}

/// Where the chain of a file that was put aside ends.
pub(super) fn last_of(path: &Path) -> Result<Option<Link>, AuditError> {
    let io = |source| AuditError::Io { path: path.to_owned(), source };
    match File::open(path) {
        Ok(mut file) => match end_of(&mut file).map_err(io)?.1 {
            Some(line) => Ok(Some(parse(&line).map_err(|fault| unusable(path, &fault))?.1)),
            None => Ok(None),
        },
        Err(fault) if fault.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(io(source)),
    }
}

fn lines(file: File) -> impl Iterator<Item = io::Result<Vec<u8>>> {
    let mut reader = BufReader::new(file);
    std::iter::from_fn(move || {
        let mut line = Vec::new();
        match reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line) {
            Ok(0) => None,
            Ok(_) => Some(Ok(line)),
            Err(fault) => Some(Err(fault)),
        }
    })
}

/// The `previous` of a line, and its number and hash. The hash was checked.
pub(super) fn parse(line: &[u8]) -> Result<(String, Link), String> {
    let mut line: Map<String, Value> = serde_json::from_slice(line).map_err(|_| "is no line of an audit log")?;
    let mut text = |key: &str| match line.remove(key) {
        Some(Value::String(text)) => Ok(text),
        _ => Err(format!("has no {key}")),
    };
    let hash = text("hash")?;
    if hash_of(&line) != hash {
        return Err("was altered: its hash does not fit".to_owned());
    }
    let number = line.get("number").and_then(Value::as_u64).ok_or("has no number")?;
    let previous = line.get("previous").and_then(Value::as_str).ok_or("has no previous")?;
    Ok((previous.to_owned(), Link { number, hash }))
}

/// Keys are sorted, so that the same object always gives the same text.
pub(super) fn hash_of(line: &Map<String, Value>) -> String {
    let sorted: std::collections::BTreeMap<&String, &Value> = line.iter().collect();
    let text = serde_json::to_vec(&sorted).expect("strings and numbers are JSON");
    digest::digest(&digest::SHA256, &text).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
