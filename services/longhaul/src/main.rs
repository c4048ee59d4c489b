//! `longhaul`: see the library.

fn main() -> std::process::ExitCode {
    longhaul::main()
}
