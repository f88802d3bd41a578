//! Builds the static PID 1 of containers (`init/main.rs`), which the library embeds.
//!
//! It is compiled with the same rustc for the same target, linked statically, without any crate.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=init/main.rs");
    println!("cargo:rerun-if-changed=build.rs");
    let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"));
    let out = PathBuf::from(variable("OUT_DIR")).join("init");
    let status = Command::new(variable("RUSTC"))
        .args(["--edition=2024", "--crate-name=arco_init", "--crate-type=bin"])
        .args(["-Cpanic=abort", "-Copt-level=s", "-Ctarget-feature=+crt-static", "-Crelocation-model=static"])
        .args(["-Cstrip=symbols", "-Clto=fat", "-Ccodegen-units=1"])
        // The C compiler adds its own archives (the unwinder) behind ours; they too must be the static ones.
        .args(["-Cdefault-linker-libraries=yes", "-Clink-arg=-Wl,-Bstatic"])
        .arg("--target")
        .arg(variable("TARGET"))
        .arg("-o")
        .arg(&out)
        .arg("init/main.rs")
        .status();
    assert!(
        status.is_ok_and(|it| it.success()),
        "failed to build init/main.rs; a static C library (libc6-dev) is needed"
    );
}
