//! Running other programs.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// Runs a program to its end and gives what it wrote to standard output.
pub fn capture<P: AsRef<OsStr>, A: AsRef<OsStr>>(program: P, arguments: &[A]) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments);
    finish(&mut command)
}

/// Runs a program to its end; what it writes shows only when it fails.
pub fn run<P: AsRef<OsStr>, A: AsRef<OsStr>>(program: P, arguments: &[A]) -> Result<()> {
    capture(program, arguments).map(drop)
}

/// The same, in a folder.
pub fn run_in<P: AsRef<OsStr>, A: AsRef<OsStr>>(program: P, arguments: &[A], folder: &Path) -> Result<()> {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder);
    finish(&mut command).map(drop)
}

/// Runs a prepared command to its end; a failure carries the end of what it wrote.
pub fn finish(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    if !output.status.success() {
        bail!("{}", failure(command, &output));
    }
    String::from_utf8(output.stdout).with_context(|| format!("{} wrote no UTF-8", line(command)))
}

/// Runs a prepared command to its end, whatever that is.
pub fn output(command: &mut Command) -> Result<Output> {
    command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", line(command)))
}

/// What to say of a command that failed.
pub fn failure(command: &Command, output: &Output) -> String {
    let mut text = format!("{} ended with {}", line(command), output.status);
    for stream in [&output.stdout, &output.stderr] {
        let said = String::from_utf8_lossy(stream);
        for line in tail(&said, 20).lines() {
            let _ = write!(text, "\n    {line}");
        }
    }
    text
}

/// The last lines of a text.
pub fn tail(text: &str, lines: usize) -> &str {
    let trimmed = text.trim_end();
    match trimmed.rmatch_indices('\n').nth(lines.saturating_sub(1)) {
        Some((at, _)) if lines > 0 => &trimmed[at + 1..],
        _ => trimmed,
    }
}

/// A command as a person would type it.
pub fn line(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        let argument = argument.to_string_lossy();
        text.push(' ');
        if argument.is_empty() || argument.contains([' ', '\'', '"', '$', '\n']) {
            let _ = write!(text, "'{}'", argument.replace('\'', r"'\''"));
        } else {
            text.push_str(&argument);
        }
    }
    text
}

/// Whether a program is on the path.
pub fn exists(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|p| p.join(program).is_file()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_tells_the_command_and_what_it_said() {
        let error = run("sh", &["-c", "echo one; echo two >&2; exit 3"])
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("sh -c 'echo one; echo two >&2; exit 3' ended with exit status: 3"),
            "{error}"
        );
        assert!(error.contains("one") && error.contains("two"), "{error}");
    }

    #[test]
    fn tail_keeps_the_last_lines() {
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc");
        assert_eq!(tail("a", 2), "a");
        assert_eq!(tail("", 2), "");
    }
}
