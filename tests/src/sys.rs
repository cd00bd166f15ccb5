//! The few system calls neither std nor nix gives in the shape we need.
//! All of this crate's unsafe code lives here; nothing here knows what a scenario is.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, unshare};
use nix::sys::socket::{Backlog, SockaddrStorage, bind, connect, listen};
use nix::unistd::Pid;

/// Opens a socket of any family, type and protocol number.
pub fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: socket(2) takes plain numbers.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets an integer socket option.
pub fn set_option(socket: &impl AsRawFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: the pointer and length describe one live i32.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Receives without waiting; `None` when nothing is queued.
pub fn receive_now(socket: &impl AsRawFd, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    // SAFETY: the pointer and length describe the caller's buffer.
    let got = unsafe {
        libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT)
    };
    if got >= 0 {
        return Ok(Some(got as usize));
    }
    let error = io::Error::last_os_error();
    if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) }
}

/// Binds the calling thread to one CPU.
pub fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu).with_context(|| format!("CPU {cpu}"))?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("binding a thread to CPU {cpu}"))
}

/// How many CPUs are online.
pub fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// CLOCK_MONOTONIC.
pub fn monotonic() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a live timespec the kernel fills.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// Lets the calling thread run before all ordinary ones, where this user may: what keeps time must not wait for the servers
/// it loads. Only for threads that sleep most of the time.
pub fn run_first() {
    let priority = libc::sched_param { sched_priority: 1 };
    // SAFETY: `priority` is a live sched_param; failure leaves the thread as it was. Children are ordinary again.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &raw const priority) };
}

/// Lets the calling thread run only when no ordinary one wants to.
pub fn run_last() -> Result<()> {
    let priority = libc::sched_param { sched_priority: 0 };
    // SAFETY: `priority` is a live sched_param.
    let done = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const priority) };
    if done < 0 { Err(io::Error::last_os_error()).context("giving up a thread's priority") } else { Ok(()) }
}

/// Raises the soft limit of open files to the hard limit, or to `wanted` when root may.
pub fn allow_open_files(wanted: u64) {
    let limit = libc::rlimit { rlim_cur: wanted, rlim_max: wanted };
    // SAFETY: `limit` is a live rlimit; failure leaves the old limit, and the first open past it says so.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
}

/// Waits for a child; returns whether it succeeded and its peak resident memory in KB. The kernel counts in what this
/// process held when it started the child, so a small parent makes it true.
pub fn wait_for(pid: u32) -> Result<(bool, u64)> {
    let mut status = 0;
    // SAFETY: rusage is plain numbers, for which zeroes are a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers lead to live variables that the kernel fills.
    let waited = unsafe { libc::wait4(pid as libc::pid_t, &raw mut status, 0, &raw mut usage) };
    if waited < 0 {
        return Err(io::Error::last_os_error()).context("waiting for a child");
    }
    Ok((libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, usage.ru_maxrss as u64))
}

/// The address that stands for any of the same family.
pub fn any(like: IpAddr) -> IpAddr {
    if like.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

fn family(address: IpAddr) -> i32 {
    if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }
}

/// A UDP socket at an address that others may have, too: the one that is connected gets its peer's packets.
pub fn bound_udp(at: SocketAddr) -> io::Result<UdpSocket> {
    let socket = socket(family(at.ip()), libc::SOCK_DGRAM, 0)?;
    set_option(&socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(at))?;
    Ok(socket.into())
}

/// A TCP socket that listens, and doesn't keep clients from having its port.
pub fn listening_tcp(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket(family(at.ip()), libc::SOCK_STREAM, 0)?;
    for option in [libc::SO_REUSEADDR, libc::SO_REUSEPORT] {
        set_option(&socket, libc::SOL_SOCKET, option, 1)?;
    }
    bind(socket.as_raw_fd(), &SockaddrStorage::from(at))?;
    listen(&socket, Backlog::MAXCONN)?;
    Ok(socket.into())
}

/// A TCP connection from `from`, or from where the route says.
pub fn connected_tcp(from: Option<SocketAddr>, to: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    let socket = socket(family(to.ip()), libc::SOCK_STREAM, 0)?;
    set_option(&socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    if let Some(from) = from {
        set_option(&socket, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
        bind(socket.as_raw_fd(), &SockaddrStorage::from(from))?;
    }
    let stream = TcpStream::from(socket);
    // connect(2) waits no longer than this.
    stream.set_write_timeout(Some(patience))?;
    connect(stream.as_raw_fd(), &SockaddrStorage::from(to))?;
    Ok(stream)
}

/// Closing it sends a RST and leaves nothing behind.
pub fn reset_on_close(stream: &TcpStream) -> io::Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: the pointer and length describe one live linger.
    let done = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as libc::socklen_t,
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Gives this process mounts of its own: an empty /run, and an /etc that can't be written.
pub fn private_mounts() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("unsharing mounts")?;
    let mount = |source: &std::ffi::CStr, target: &std::ffi::CStr, kind: &std::ffi::CStr, flags| {
        // SAFETY: three live C strings; no data.
        let done =
            unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, std::ptr::null()) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    mount(c"none", c"/", c"", libc::MS_REC | libc::MS_PRIVATE).context("making mounts private")?;
    mount(c"tmpfs", c"/run", c"tmpfs", 0).context("an empty /run")?;
    mount(c"/etc", c"/etc", c"", libc::MS_BIND | libc::MS_REC).context("binding /etc")?;
    mount(c"none", c"/etc", c"", libc::MS_BIND | libc::MS_REMOUNT | libc::MS_RDONLY)
        .context("a read-only /etc")
}
