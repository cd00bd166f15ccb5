//! One file per kernel function that is hooked.
//! What may not happen here: reading a layout that is not in `config`, or counting beside `emit`.

pub mod early_drop;
pub mod gc_worker;
pub mod init_conntrack;
pub mod insert;
pub mod kfree_skb;
pub mod nf_conntrack_confirm;
pub mod nf_conntrack_in;
pub mod nf_ct_delete;
pub mod pernet_exit;
pub mod sync;
