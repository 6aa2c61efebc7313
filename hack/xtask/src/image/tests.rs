//! Pure: what the archive writer promises, read back with a tar reader that knows nothing of the writer.

use std::collections::BTreeMap;
use std::io::Read;

use serde_json::Value;

use super::*;

fn sample(binary: &Path) -> ImageSpec {
    let mut spec = ImageSpec::from_scratch("localhost/sample:1");
    spec.entrypoint = vec!["/bin/sample".into()];
    spec.cmd = vec!["run".into()];
    spec.env = vec!["MODE=test".into()];
    spec.user = Some("65534".into());
    spec.labels.insert("org.opencontainers.image.title".into(), "sample".into());
    spec.add_file(binary, "/bin/sample").unwrap();
    spec.add("/etc/sample/conf", Content::Copy(binary.to_path_buf(), 0o640)).unwrap();
    spec.add("/bin/alias", Content::Link("sample".into())).unwrap();
    spec
}

fn written(folder: &Path, name: &str) -> (Vec<u8>, Digest) {
    let binary = folder.join("sample-binary");
    std::fs::write(&binary, b"\x7fELF not really").unwrap();
    std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).unwrap();
    let out = folder.join(name);
    let digest = write_oci_archive(&sample(&binary), &out).unwrap();
    (std::fs::read(out).unwrap(), digest)
}

fn files(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        found.insert(entry.path().unwrap().to_string_lossy().into_owned(), bytes);
    }
    found
}

fn blob<'a>(files: &'a BTreeMap<String, Vec<u8>>, descriptor: &Value) -> &'a [u8] {
    let digest = descriptor["digest"].as_str().unwrap();
    let bytes = &files[&format!("blobs/sha256/{}", digest.strip_prefix("sha256:").unwrap())];
    assert_eq!(Digest::of(bytes).to_string(), digest, "the blob is what its name says");
    assert_eq!(descriptor["size"], bytes.len(), "size of {digest}");
    bytes
}

#[test]
fn the_same_spec_gives_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let (first, digest) = written(folder.path(), "one.tar");
    let (second, again) = written(folder.path(), "two.tar");
    assert!(first == second, "two writes of one spec differ");
    assert_eq!(digest, again);
}

#[test]
fn the_digest_is_the_one_that_sha256sum_prints() {
    let known = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(Digest::of(b"abc").to_string(), known);
}

#[test]
fn the_layout_leads_from_the_index_to_every_blob() {
    let folder = tempfile::tempdir().unwrap();
    let (archive, digest) = written(folder.path(), "image.tar");
    let files = files(&archive);
    assert_eq!(files["oci-layout"], br#"{"imageLayoutVersion":"1.0.0"}"#);
    let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
    let described = &index["manifests"][0];
    assert_eq!(described["digest"], digest.to_string());
    assert_eq!(described["annotations"]["io.containerd.image.name"], "localhost/sample:1");
    assert_eq!(described["annotations"]["org.opencontainers.image.ref.name"], "1");
    assert_eq!(described["platform"]["os"], "linux");

    let manifest: Value = serde_json::from_slice(blob(&files, described)).unwrap();
    assert_eq!(manifest["mediaType"], described["mediaType"]);
    assert_eq!(manifest["layers"][0]["mediaType"], "application/vnd.oci.image.layer.v1.tar");
    let config: Value = serde_json::from_slice(blob(&files, &manifest["config"])).unwrap();
    assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"], "an uncompressed layer is its own diff");
    assert_eq!(config["config"]["Entrypoint"][0], "/bin/sample");
    assert_eq!(config["config"]["Cmd"][0], "run");
    assert_eq!(config["config"]["Env"][1], "MODE=test");
    assert_eq!(config["config"]["User"], "65534");
    assert_eq!(config["config"]["Labels"]["org.opencontainers.image.title"], "sample");
    assert_eq!(files.len(), 5, "layout, index and three blobs: {:?}", files.keys());
}

#[test]
fn the_layer_is_sorted_owned_by_root_and_without_times() {
    let folder = tempfile::tempdir().unwrap();
    let (archive, _) = written(folder.path(), "image.tar");
    let files = files(&archive);
    let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
    let manifest: Value = serde_json::from_slice(blob(&files, &index["manifests"][0])).unwrap();
    let mut seen = Vec::new();
    for entry in tar::Archive::new(blob(&files, &manifest["layers"][0])).entries().unwrap() {
        let entry = entry.unwrap();
        let header = entry.header();
        assert_eq!((header.uid().unwrap(), header.gid().unwrap(), header.mtime().unwrap()), (0, 0, 0));
        let link = entry.link_name().unwrap().map(|target| format!(" -> {}", target.display())).unwrap_or_default();
        seen.push(format!("{:o} {}{link}", header.mode().unwrap(), entry.path().unwrap().display()));
    }
    let expected = [
        "755 bin/",
        "777 bin/alias -> sample",
        "755 bin/sample",
        "755 dev/",
        "755 etc/",
        "755 etc/sample/",
        "640 etc/sample/conf",
        "755 proc/",
        "755 run/",
        "755 sys/",
        "1777 tmp/",
    ];
    assert_eq!(seen, expected);
}

#[test]
fn a_path_that_is_taken_relative_or_climbing_is_refused() {
    let mut spec = ImageSpec::from_scratch("localhost/sample:1");
    spec.add("/a", Content::Link("x".to_owned())).unwrap();
    for path in ["/a", "/a/b", "b", "/../b", "/c//d", "/"] {
        assert!(spec.add(path, Content::Link("x".to_owned())).is_err(), "{path} was taken");
    }
    spec.add("/tmp", Content::Folder(0o755)).expect("a folder may be named again, it stays a folder");
}

#[test]
fn a_name_without_a_tag_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["localhost/sample", "localhost:5000/sample", "sample:", ":1"] {
        let refused = write_oci_archive(&ImageSpec::from_scratch(name), &folder.path().join("image.tar"));
        assert!(refused.is_err(), "{name} was taken");
    }
}
