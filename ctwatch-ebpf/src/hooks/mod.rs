//! One file per hooked kernel function.
//! Layouts are read only through `config`, and everything is counted through `emit`.

pub mod early_drop;
pub mod expect;
pub mod gc_worker;
pub mod init_conntrack;
pub mod insert;
pub mod kfree_skb;
pub mod nf_conntrack_confirm;
pub mod nf_conntrack_in;
pub mod nf_ct_delete;
pub mod pernet_exit;
pub mod sync;
