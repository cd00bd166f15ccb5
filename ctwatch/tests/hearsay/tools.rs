//! nft and iptables-save come from folders that root alone may write to, whatever PATH and the working directory say.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::{SECONDS, alone, folder, recorder, watched};

/// Tools that leave a mark if they are run.
fn plant(folder: &Path, mark: &Path) {
    for tool in [
        "nft",
        "iptables-save",
        "iptables-nft-save",
        "ip6tables-nft-save",
        "iptables-legacy-save",
        "ip6tables-save",
    ] {
        let file = folder.join(tool);
        std::fs::write(&file, format!("#!/bin/sh\necho $0 >> {}\n", mark.display())).unwrap();
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
}

#[test]
fn a_tool_in_a_folder_of_somebody_else_s_is_not_run() {
    let _alone = alone();
    let folder = folder();
    let mark = folder.path().join("mark");
    let place = |name: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir(&path).unwrap();
        plant(&path, &mark);
        path
    };
    let (theirs, shared, sticky, here) = (place("theirs"), place("shared"), place("sticky"), place("here"));
    std::os::unix::fs::chown(&theirs, Some(65_534), None).unwrap();
    std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o777)).unwrap();
    std::fs::set_permissions(&sticky, std::fs::Permissions::from_mode(0o1777)).unwrap();
    // A folder of root's in which a link leads to what is somebody else's.
    let linked = folder.path().join("linked");
    std::fs::create_dir(&linked).unwrap();
    std::os::unix::fs::symlink(theirs.join("nft"), linked.join("nft")).unwrap();
    let all = [&theirs, &shared, &sticky, &linked].map(|path| path.display().to_string()).join(":");
    for path in [
        format!("{all}:/usr/sbin:/usr/bin"),
        all,
        String::new(),
        ".:".to_owned(),
        ":here".to_owned(),
        "../here".to_owned(),
    ] {
        let mut command = recorder(folder.path(), SECONDS);
        command.env("PATH", &path).current_dir(&here);
        let (code, _) = watched(command.spawn().unwrap());
        assert_eq!(code, Some(0), "{path}");
        assert!(!mark.exists(), "PATH={path}: {}", std::fs::read_to_string(&mark).unwrap());
        let _ = std::fs::remove_file(crate::file_in(folder.path()));
    }
    // Or nothing was shown: the same tools from a folder of root's are.
    let root_s = place("root-s");
    let mut command = recorder(folder.path(), SECONDS);
    command.env("PATH", &root_s);
    assert_eq!(watched(command.spawn().unwrap()).0, Some(0));
    assert!(mark.exists(), "no tool was run at all: is nf_tables in this kernel?");
}
