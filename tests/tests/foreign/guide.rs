//! Pages whose every line is run.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::mesh::{Mesh, meshwright, root, text};

/// Lines of the blocks marked `sh` of a page of `docs`.
pub(crate) fn lines(page: &str) -> Vec<String> {
    let page = fs::read_to_string(root().join("docs").join(page)).unwrap();
    let (mut inside, mut shell) = (false, false);
    let kept = page.lines().filter(|line| {
        if let Some(language) = line.strip_prefix("```") {
            inside = !inside;
            shell = inside && language == "sh";
            return false;
        }
        shell
    });
    kept.map(str::to_owned).collect()
}

/// Runs a line in a folder as somebody would who has `meshwright` in the path; it must succeed. What it printed.
pub(crate) fn run(mesh: &Mesh, folder: &Path, line: &str) -> String {
    let told = mesh.command(&[]);
    let variables = told.get_envs().map(|(name, value)| (name, value.unwrap()));
    shell(folder, variables, line).unwrap_or_else(|said| panic!("{line}: {said}\n{}", mesh.log()))
}

/// The same before there is a mesh: `Err` with what it said where it failed.
pub(crate) fn shell<K: AsRef<std::ffi::OsStr>, V: AsRef<std::ffi::OsStr>>(
    folder: &Path,
    variables: impl IntoIterator<Item = (K, V)>,
    line: &str,
) -> Result<String, String> {
    let path = format!("{}:{}", meshwright().parent().unwrap().display(), std::env::var("PATH").unwrap());
    let mut shell = Command::new("sh");
    shell.args(["-c", line]).envs(variables).env("PATH", path).current_dir(folder).stdin(Stdio::null());
    let output = shell.output().unwrap();
    let printed = text(&output.stdout);
    eprintln!("$ {line}\n{printed}");
    if output.status.success() { Ok(printed) } else { Err(printed + &text(&output.stderr)) }
}
