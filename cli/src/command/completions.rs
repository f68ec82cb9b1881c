//! `meshwright completions`.

use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Cli;
use crate::output;

/// Arguments of `meshwright completions`.
#[derive(Debug, Args)]
#[command(after_help = "Example: meshwright completions bash > ~/.local/share/bash-completion/completions/meshwright")]
pub(crate) struct CompletionsArgs {
    /// The shell to complete for
    #[arg(value_enum)]
    shell: Shell,
}

pub(crate) fn run(args: CompletionsArgs) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "meshwright", &mut script);
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: the whole tree of commands is sound, has an example each, and completes in every shell.
    #[test]
    fn every_command_is_sound_and_has_an_example() {
        Cli::command().debug_assert();
        for command in Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example"), "`{}` has no example", command.get_name());
            assert!(command.get_about().is_some(), "`{}` says nothing about itself", command.get_name());
        }
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "meshwright", &mut script);
            assert!(String::from_utf8(script).unwrap().contains("completions"));
        }
    }
}
