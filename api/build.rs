//! Compiles the protobuf contract without an installed `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "proto/envoy/service/discovery/v3/discovery.proto",
        "proto/heddle/discovery/v1/resources.proto",
        "proto/heddle/identity/v1/identity.proto",
        "proto/heddle/registration/v1/registration.proto",
    ];
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure()
        .btree_map(".")
        // Its body is shared by all who are sent it.
        .extern_path(".google.protobuf.Any", "crate::proto::Any")
        .compile_fds(descriptors)?;
    Ok(())
}
