//! The Python client: built, installed from its wheel, and run against the binary.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use super::*;

fn client() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../clients/python")
}

fn ran(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}: {said}");
    output
}

/// An interpreter that has the client from its wheel; `None` without Python or the package registry.
pub(crate) fn python() -> Option<PathBuf> {
    static FOLDER: OnceLock<Option<tempfile::TempDir>> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let found = Command::new("python3")
            .args(["-m", "venv", "--help"])
            .output();
        if !able("python3", found.is_ok_and(|output| output.status.success())) {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let environment = folder.path().join("venv");
        ran(Command::new("python3")
            .args(["-m", "venv"])
            .arg(&environment));
        let wheels = folder.path().join("wheels");
        // A copy: a build leaves files behind.
        let source = folder.path().join("source");
        ran(Command::new("cp").arg("-r").arg(client()).arg(&source));
        let pip = environment.join("bin/pip");
        let mut build = Command::new(&pip);
        build.args([
            "wheel",
            "-q",
            "--no-deps",
            "--disable-pip-version-check",
            "-w",
        ]);
        let built = build.arg(&wheels).arg(&source).output().unwrap();
        let said = String::from_utf8_lossy(&built.stderr).into_owned();
        if !built.status.success() && said.contains("flit_core") {
            eprintln!("{said}");
            able("pypi", false);
            return None;
        }
        assert!(built.status.success(), "{said}");
        let mut install = Command::new(&pip);
        install.args(["install", "-q", "--no-index", "--disable-pip-version-check"]);
        ran(install.arg("--find-links").arg(&wheels).arg("towpath"));
        Some(folder)
    });
    let folder = folder.as_ref()?;
    Some(folder.path().join("venv/bin/python3"))
}

impl Site {
    fn python(&self, interpreter: &Path) -> Command {
        let mut command = Command::new(interpreter);
        command
            .current_dir(&self.world.folder)
            .env("TOWPATH_URL", format!("http://{}", self.world.admin))
            .env("TOWPATH_TOKEN_FILE", self.world.data().join("admin.token"));
        command
    }
}

#[test]
fn the_client_passes_its_tests_on_each_backend_with_idempotency() {
    let Some(interpreter) = python() else { return };
    let sites = [Some(Site::embedded()), Site::redis()];
    for site in sites.into_iter().flatten() {
        let mut tests = site.python(&interpreter);
        tests.arg(client().join("tests/test_towpath.py"));
        let output = tests.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {said}", site.name);
        assert!(
            said.contains("Ran 8 tests") && !said.contains("skipped"),
            "{said}"
        );
    }
}

#[test]
fn the_example_worker_sends_mails_and_ends_with_sigterm() {
    let Some(interpreter) = python() else { return };
    let site = Site::embedded();
    let mut api = site.api();
    let output = site.world.folder.join("sent.txt");
    let child = site
        .python(&interpreter)
        .arg(client().join("examples/worker.py"))
        .stdout(std::fs::File::create(&output).unwrap())
        .spawn()
        .unwrap();
    let worker = Guarded(child);
    // The worker waits for queues that do not exist yet.
    api.send("emails", &[], r#"{"to": "ann@example.com"}"#);
    api.send("emails", &[], r#"{"to": "busy@example.com"}"#);
    api.send("emails", &[], r#"{"to": "nowhere"}"#);
    api.send("emails", &[], "{}");
    api.send("thumbnails", &[], "cat.png");
    let mut lines = Vec::new();
    wait_until("the jobs", Duration::from_secs(30), || {
        let text = std::fs::read_to_string(&output).unwrap();
        lines = text.lines().map(str::to_owned).collect();
        lines.len() == 3 && api.dead_letters("emails").len() == 2
    });
    lines.sort();
    assert_eq!(
        lines,
        [
            "resized cat.png",
            "sent to ann@example.com",
            "sent to busy@example.com"
        ]
    );
    let letters = api.dead_letters("emails");
    let reasons: BTreeSet<String> = { letters.iter() }
        .map(|letter| letter["reason"].as_str().unwrap().to_owned())
        .collect();
    let expected = ["KeyError: 'to'", "no address: nowhere"];
    assert_eq!(reasons, expected.map(str::to_owned).into());
    let pid = worker.0.id().to_string();
    ran(Command::new("kill").args(["-TERM", &pid]));
    assert!(worker.wait(), "the worker ends with 0");
}

/// A process that does not outlive its test.
struct Guarded(std::process::Child);

impl Guarded {
    fn wait(mut self) -> bool {
        self.0.wait().unwrap().success()
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
