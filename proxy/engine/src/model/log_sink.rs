//! Where lines of the access log go.

/// Most sinks of one proxy.
pub const LOG_SINKS_MAX: usize = 8;
/// A file that would become larger is put aside, where nothing else is said.
pub const LOG_FILE_BYTES_DEFAULT: u64 = 64 << 20;
/// How many files are kept that were put aside, where nothing else is said.
pub const LOG_FILES_KEPT_DEFAULT: u32 = 5;
/// Smallest and largest bound on a file.
pub const LOG_FILE_BYTES_RANGE: (u64, u64) = (64 << 10, 1 << 40);
/// Most files that are kept.
pub const LOG_FILES_KEPT_MAX: u32 = 100;
/// Longest path of a file, in bytes.
pub(super) const LOG_PATH_BYTES_MAX: usize = 1024;
/// What a path may say in place of the proxy's own names.
const NAMES: [&str; 3] = ["namespace", "workload", "instance"];

/// One place that lines go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogSink {
    /// Standard output.
    Stdout,
    /// A file of the proxy's own file system.
    File(LogFile),
    /// An OTLP collector, by gRPC: `http://HOST:PORT`.
    Otlp(String),
    /// A Service of the mesh that takes Envoy's access log stream: `http://HOST:PORT`.
    Als(String),
}

/// A file, and what becomes of it as it grows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFile {
    /// Absolute, with places for names ([`LogFile::path_of`]).
    pub path: String,
    /// It is put aside before it has more bytes.
    pub bytes_max: u64,
    /// How many are kept that were put aside.
    pub keep: u32,
}

impl LogSink {
    /// Its kind in one word, for metrics.
    pub const fn kind(&self) -> LogSinkKind {
        match self {
            Self::Stdout => LogSinkKind::Stdout,
            Self::File(_) => LogSinkKind::File,
            Self::Otlp(_) => LogSinkKind::Otlp,
            Self::Als(_) => LogSinkKind::Als,
        }
    }
}

/// What a sink is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "as the sinks of that name")]
pub enum LogSinkKind {
    Stdout,
    File,
    Otlp,
    Als,
}

impl LogSinkKind {
    /// All of them; `kind as usize` is its index.
    pub const ALL: [Self; 4] = [Self::Stdout, Self::File, Self::Otlp, Self::Als];

    /// As it is configured.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::File => "file",
            Self::Otlp => "otlp",
            Self::Als => "als",
        }
    }
}

impl LogFile {
    /// Judges a path.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn judge_path(path: &str) -> Result<(), String> {
        if !path.starts_with('/') || path.ends_with('/') {
            return Err("it is no absolute path of a file".to_owned());
        }
        if path.len() > LOG_PATH_BYTES_MAX {
            return Err(format!("it has more than {LOG_PATH_BYTES_MAX} bytes"));
        }
        if path.split('/').any(|part| part == "..") || path.chars().any(char::is_control) {
            return Err("it holds `..` or a control character".to_owned());
        }
        let mut rest = path;
        while let Some((_, behind)) = rest.split_once('{') {
            let (name, behind) = behind.split_once('}').ok_or("a `{` in it is never closed")?;
            if !NAMES.contains(&name) {
                return Err(format!(
                    "`{{{}}}` stands for nothing; there are {{namespace}}, {{workload}} and {{instance}}",
                    name.escape_debug()
                ));
            }
            rest = behind;
        }
        Ok(())
    }

    /// The path in a proxy of these names.
    pub fn path_of(&self, namespace: &str, workload: &str, instance: &str) -> String {
        let mut path = self.path.clone();
        for (place, name) in NAMES.iter().zip([namespace, workload, instance]) {
            path = path.replace(&format!("{{{place}}}"), name);
        }
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: absolute paths of files are taken, with names that we know; whatever leads elsewhere is refused in words.
    #[test]
    fn paths_are_judged() {
        for path in ["/var/log/mesh.log", "/logs/{namespace}/{workload}-{instance}.log", "/a..b/c", "/dev/stderr"] {
            assert_eq!(LogFile::judge_path(path), Ok(()), "{path}");
        }
        for (path, wanted) in [
            ("", "no absolute path"),
            ("mesh.log", "no absolute path"),
            ("/var/log/", "no absolute path"),
            ("/var/../etc/passwd", "`..`"),
            ("/a\nb", "control character"),
            ("/{pod}.log", "stands for nothing"),
            ("/{instance", "never closed"),
            (&format!("/{}", "a".repeat(LOG_PATH_BYTES_MAX)), "more than 1024"),
        ] {
            let told = LogFile::judge_path(path).unwrap_err();
            assert!(told.contains(wanted), "{path}: {told}");
        }
        let file = LogFile { path: "/l/{namespace}/{workload}-{instance}.log".into(), bytes_max: 1, keep: 1 };
        assert_eq!(file.path_of("shop", "store", "store-0"), "/l/shop/store-store-0.log");
    }
}
