//! A program outside of the workspace: it depends on the library by path, is killed in its job, and finds it again.

#![expect(clippy::unwrap_used, reason = "a test that fails panics")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The profile's folder of this test, `target/debug`.
fn profile() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().parent().unwrap().to_owned()
}

/// Builds the program with the versions of the workspace.
fn built() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (source, project) = (
        here.join("tests/outside"),
        profile().join("outside-project"),
    );
    std::fs::create_dir_all(project.join("src")).unwrap();
    let manifest = std::fs::read_to_string(source.join("Cargo.toml")).unwrap();
    let path = format!("path = {:?}", here.display().to_string());
    let manifest = manifest.replace("path = \"../..\"", &path);
    std::fs::write(project.join("Cargo.toml"), manifest).unwrap();
    std::fs::copy(source.join("src/main.rs"), project.join("src/main.rs")).unwrap();
    std::fs::copy(here.join("../../Cargo.lock"), project.join("Cargo.lock")).unwrap();
    let target = project.join("target");
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--offline", "--manifest-path"])
        .arg(project.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .status()
        .unwrap();
    assert!(status.success(), "the program outside is not built");
    target.join("debug/outside")
}

#[test]
fn a_program_outside_finds_its_job_after_it_was_killed() {
    let (program, folder) = (built(), tempfile::tempdir().unwrap());
    let data = folder.path().join("data");
    let run = |arguments: &[&str]| -> Output {
        let mut command = Command::new(&program);
        command.arg(arguments[0]).arg(&data).args(&arguments[1..]);
        command.output().unwrap()
    };
    let sent = run(&["send", "resize image 7"]);
    assert!(sent.status.success(), "{sent:?}");
    assert!(!run(&["crash"]).status.success());
    let worked = run(&["work"]);
    assert!(worked.status.success(), "{worked:?}");
    let text = String::from_utf8(worked.stdout).unwrap();
    assert_eq!(text, "resize image 7 at attempt 2\n");
}

#[test]
fn the_library_and_its_crates_can_be_packaged() {
    let target = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO"))
        .args(["package", "--offline", "--allow-dirty", "--no-verify"])
        .args([
            "-p",
            "towpath-core",
            "-p",
            "towpath-backends",
            "-p",
            "towpath",
        ])
        .arg("--target-dir")
        .arg(target.path())
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let version = env!("CARGO_PKG_VERSION");
    for name in ["towpath-core", "towpath-backends", "towpath"] {
        let file = target
            .path()
            .join(format!("package/{name}-{version}.crate"));
        assert!(file.is_file(), "{}", file.display());
    }
}
