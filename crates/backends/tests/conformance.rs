//! The shared suite over every backend: one row each.

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::Arguments;
use towpath_core::SystemClock;
use towpath_testkit::{Subject, child_main, fault, trials};

const SUBJECTS: &[Subject] = &[Subject {
    name: "embedded",
    descriptor: &towpath_backends::embedded::DESCRIPTOR,
    missing: || None,
    open: |folder| {
        Box::pin(async move {
            let url = format!("embedded:{}?segment=1MiB&reserve=0", folder.display());
            towpath_backends::open(&url, Arc::new(SystemClock::new())).await
        })
    },
}];

fn main() -> ExitCode {
    if child_main(SUBJECTS) || fault::child_main(SUBJECTS) {
        return ExitCode::SUCCESS;
    }
    let mut all = trials(SUBJECTS);
    for subject in SUBJECTS.iter().filter(|subject| subject.name == "embedded") {
        all.extend(fault::trials(subject));
    }
    libtest_mimic::run(&Arguments::from_args(), all).exit_code()
}
