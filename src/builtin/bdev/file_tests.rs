//! A bdev in a file, on a real file system.

use super::*;

fn image(bytes: u64) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    File::create(&path).unwrap().set_len(bytes).unwrap();
    (dir, path)
}

#[test]
fn what_was_written_is_in_the_file_and_a_hole_reads_as_zeroes() {
    let (_dir, path) = image(1 << 20);
    let disk = DiskFile::open(&path, 512, false).unwrap();
    let data = AlignedBuffer::zeroed(8192).unwrap();
    data.slice().copy_from(&[9u8; 8192]);
    disk.transfer(Transfer { write: true, offset: 4096 }, &[data.slice()]).unwrap();
    disk.flush().unwrap();
    let text = std::fs::read(&path).unwrap();
    assert_eq!(&text[4096..12288], &[9; 8192]);
    disk.zero(4096, 4096, true).unwrap();
    disk.zero(8192, 512, false).unwrap();
    let text = std::fs::read(&path).unwrap();
    assert_eq!(&text[4096..8704], &[0; 4608]);
    assert_eq!(&text[8704..12288], &[9; 3584]);
}

#[test]
fn a_folder_a_missing_file_and_a_pipe_are_distinguished() {
    let (dir, path) = image(512);
    assert_eq!(DiskFile::open(dir.path(), 512, false).unwrap_err(), Errno::EISDIR);
    assert_eq!(DiskFile::open(&path.join("x"), 512, false).unwrap_err(), Errno::ENOTDIR);
    assert_eq!(DiskFile::open(&dir.path().join("x"), 512, false).unwrap_err(), Errno::ENOENT);
    assert_eq!(DiskFile::open(Path::new("/dev/null"), 512, false).unwrap_err(), Errno::EINVAL);
}

#[test]
fn a_zbs_name_never_leads_out_of_its_folder() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder(dir.path().to_path_buf());
    assert_eq!(folder.path("zbs://pool/volume").unwrap(), dir.path().join("pool/volume"));
    assert_eq!(folder.path("/volume").unwrap(), dir.path().join("volume"));
    for name in ["../x", "a/../../x", "zbs://../x", "", "a//b", "./x", "zbs://"] {
        assert_eq!(folder.path(name), Err(Errno::EINVAL), "{name}");
    }
    std::os::unix::fs::symlink("/", dir.path().join("out")).unwrap();
    assert_eq!(folder.open("out/tmp", 512).unwrap_err(), Errno::EINVAL);
}

#[test]
fn a_zbs_file_that_is_not_there_is_made_with_the_default_size() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Folder(dir.path().to_path_buf()).open("zbs://pool/volume", 512).unwrap();
    assert_eq!(disk.bytes().unwrap(), IMAGE_BYTES);
}
