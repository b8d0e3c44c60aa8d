//! What a shell offers behind `weft`: scripts for shells, and answers to kubectl for `kubectl weft`.
use clap::Command;
use clap_complete::Shell;

/// The script of `shell`.
pub(crate) fn script(shell: Shell, mut command: Command) -> String {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command, "weft", &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// What may follow `words`, the last of which is begun (or empty), in the form that kubectl asks its plugins for: one a
/// line, then a line that says what else to offer (`:4`: nothing, not even files).
pub(crate) fn for_kubectl(command: &Command, words: &[String]) -> String {
    let mut offered = after(command, words);
    offered.sort();
    offered.dedup();
    offered.iter().map(|word| format!("{word}\n")).chain([":4\n".to_owned()]).collect()
}

fn after(command: &Command, words: &[String]) -> Vec<String> {
    let (begun, before) = match words {
        [] => ("", words),
        [before @ .., begun] => (begun.as_str(), before),
    };
    let mut command = command;
    for word in before {
        command = command.find_subcommand(word).unwrap_or(command);
    }
    let arguments = || command.get_arguments().filter(|argument| !argument.is_hide_set());
    // A flag that takes one of a few values.
    let flag = before.last().and_then(|word| {
        arguments().find(|argument| {
            let long = argument.get_long().is_some_and(|long| word.strip_prefix("--") == Some(long));
            let short = argument.get_short().is_some_and(|short| *word == format!("-{short}"));
            argument.get_action().takes_values() && (long || short)
        })
    });
    let words: Vec<String> = match flag {
        Some(flag) => flag.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect(),
        None if begun.starts_with('-') => {
            arguments().filter_map(|argument| Some(format!("--{}", argument.get_long()?))).collect()
        }
        None => {
            let subcommands = command.get_subcommands().filter(|command| !command.is_hide_set());
            let values =
                arguments().filter(|argument| argument.is_positional()).flat_map(clap::Arg::get_possible_values);
            subcommands
                .map(|command| command.get_name().to_owned())
                .chain(values.map(|value| value.get_name().to_owned()))
                .collect()
        }
    };
    words.into_iter().filter(|word| word.starts_with(begun)).collect()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::Cli;

    #[test]
    fn kubectl_is_told_what_may_follow() {
        for (words, expected) in [
            (vec!["get", ""], vec!["edges", "policies", "routes", "workloads"]),
            (vec!["get", "wo"], vec!["workloads"]),
            (vec!["get", "workloads", "-o", ""], vec!["json", "wide", "yaml"]),
            (vec!["policy", ""], vec!["calls", "diff", "explain", "suggest", "test"]),
            (vec!["policy", "test", "-o", "j"], vec!["json", "junit"]),
            (vec!["policy", "diff", "--fail-on", ""], vec!["allowed", "depends", "refused"]),
            (vec!["check", "--output", "j"], vec!["json"]),
            (vec!["check", "--p"], vec!["--pre"]),
            (vec!["get", "workloads", "--al"], vec!["--all-namespaces"]),
            (vec!["completion", "f"], vec!["fish"]),
            (vec!["get", "workloads", "--namespace", ""], vec![]),
            (vec!["demo-"], vec![]),
        ] {
            let words: Vec<String> = words.into_iter().map(str::to_owned).collect();
            let answer = for_kubectl(&Cli::command(), &words);
            let lines: Vec<&str> = answer.lines().collect();
            assert_eq!(lines, [expected, vec![":4"]].concat(), "{words:?}");
        }
    }

    #[test]
    fn every_shell_gets_a_script_that_knows_the_commands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::PowerShell] {
            let script = script(shell, Cli::command());
            assert!(["check", "workloads", "all-namespaces"].iter().all(|word| script.contains(word)), "{shell}");
        }
    }
}
