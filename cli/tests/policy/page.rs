//! The policy page: its files are written where it says, its commands are run, and they say what it shows.
use std::fs;
use std::path::Path;

use crate::fixture::Folder;

#[test]
fn every_example_of_the_policy_page_does_what_the_page_shows() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../control-plane/POLICY.md");
    let page = fs::read_to_string(page).expect("the page");
    let folder = Folder::new();
    folder.write("calls.json", include_str!("calls.json"));
    let (mut files, mut commands) = (0, 0);
    for (language, block) in blocks(&page) {
        match language {
            "yaml" => {
                let name = block.lines().next().and_then(|line| line.strip_prefix("# ")).expect("a file's name");
                folder.write(name, block);
                files += 1;
            }
            "console" => {
                for shown in block.split("$ weft ").filter(|shown| !shown.trim().is_empty()) {
                    let (command, expected) = shown.split_once('\n').unwrap_or((shown, ""));
                    let arguments: Vec<&str> = command.split(' ').collect();
                    let ended = folder.weft(&arguments);
                    let said = format!("{}{}", ended.stdout, ended.stderr);
                    assert_eq!(said.trim_end(), expected.trim_end(), "weft {command}\nsays:\n{said}");
                    commands += 1;
                }
            }
            _ => {}
        }
    }
    assert!(files >= 10 && commands >= 8, "{files} files, {commands} commands: the page is not read as it is written");
}

/// Every fenced block with its language.
fn blocks(page: &str) -> Vec<(&str, &str)> {
    let parts: Vec<&str> = page.split("```").collect();
    assert!(parts.len() % 2 == 1, "a fence is not closed");
    parts.iter().skip(1).step_by(2).map(|block| block.split_once('\n').expect("a language")).collect()
}
