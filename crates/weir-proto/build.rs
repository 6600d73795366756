//! From `proto/weir.proto` to Rust, without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = "proto/weir.proto";
    println!("cargo:rerun-if-changed={file}");
    let descriptors = protox::compile([file], ["proto"])?;
    tonic_prost_build::configure()
        // a change is encoded once, and shared by the frames of all agents that need it
        .bytes(".weir.v1.Changes.change")
        .build_transport(false)
        .compile_fds(descriptors)?;
    Ok(())
}
