//! `weir completion`: what a shell needs to complete commands and flags.

use std::process::ExitCode;

use clap::{Args, Command, ValueEnum};
use clap_complete::{Shell, generate};

/// Print what a shell needs to complete weir's commands and flags
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  source <(weir completion bash)                             # in ~/.bashrc
  weir completion zsh > \"${fpath[1]}/_weir\"
  weir completion fish > ~/.config/fish/completions/weir.fish
  weir completion powershell | Out-String | Invoke-Expression")]
pub(crate) struct Completion {
    /// The shell
    #[arg(value_enum)]
    shell: For,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum For {
    Bash,
    Zsh,
    Fish,
    Powershell,
}

impl Completion {
    /// Prints it, of all of `command`.
    pub(crate) fn run(&self, command: &mut Command) -> ExitCode {
        let shell = match self.shell {
            For::Bash => Shell::Bash,
            For::Zsh => Shell::Zsh,
            For::Fish => Shell::Fish,
            For::Powershell => Shell::PowerShell,
        };
        let mut text = Vec::new();
        generate(shell, command, "weir", &mut text);
        // whoever reads it may have had enough
        let _ = std::io::Write::write_all(&mut std::io::stdout().lock(), &text);
        ExitCode::SUCCESS
    }
}
