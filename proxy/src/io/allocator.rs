//! The allocator of the binaries: mimalloc, asked in the cheap way.
#![allow(unsafe_code, reason = "the allocator is called by C's rules at this door only; each block says why it holds")]

use std::alloc::{GlobalAlloc, Layout};

use libmimalloc_sys::{mi_free, mi_malloc, mi_malloc_aligned, mi_realloc, mi_realloc_aligned, mi_zalloc, mi_zalloc_aligned};

/// What mimalloc aligns every block to that is at least as large (`MI_MAX_ALIGN_SIZE`); smaller blocks to their size.
const NATURAL_ALIGN: usize = 16;

/// mimalloc as the global allocator. What is aligned by nature is asked for without naming an alignment: with one, mimalloc takes a slow
/// road for all but the sizes that are powers of two, makes the block larger, and remembers to look for its beginning when it is freed.
#[derive(Clone, Copy, Debug)]
pub struct Allocator;

const fn by_nature(align: usize, bytes: usize) -> bool {
    align <= NATURAL_ALIGN && align <= bytes
}

// SAFETY: mimalloc's functions keep the contract: a block is valid for its size and alignment until it is freed, null means there is no
// memory, and nothing unwinds. `mi_free` and `mi_realloc` take any block of mimalloc's, and every block here is one.
unsafe impl GlobalAlloc for Allocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: any size will do, and the caller promises an alignment that is a power of two.
        unsafe {
            if by_nature(layout.align(), layout.size()) {
                mi_malloc(layout.size()).cast()
            } else {
                mi_malloc_aligned(layout.size(), layout.align()).cast()
            }
        }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as for `alloc`.
        unsafe {
            if by_nature(layout.align(), layout.size()) {
                mi_zalloc(layout.size()).cast()
            } else {
                mi_zalloc_aligned(layout.size(), layout.align()).cast()
            }
        }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, _: Layout) {
        // SAFETY: the caller promises that the block came from here and is not used any more.
        unsafe { mi_free(block.cast()) }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // SAFETY: the caller promises that the block came from here. A block that stays where it is keeps the alignment it has; one that
        // moves gets what its new size brings along, or what is named.
        unsafe {
            if by_nature(layout.align(), bytes) {
                mi_realloc(block.cast(), bytes).cast()
            } else {
                mi_realloc_aligned(block.cast(), bytes, layout.align()).cast()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: every size and alignment is kept, zeroes are zeroes, and what was written survives growing and shrinking.
    #[test]
    fn blocks_are_aligned_and_keep_their_bytes() {
        for align in [1, 2, 4, 8, 16, 32, 64, 4096] {
            for bytes in (1..200).chain([1000, 1024, 1025, 8191, 8192, 100_000, 3 << 20]) {
                let layout = Layout::from_size_align(bytes, align).unwrap();
                // SAFETY: the layouts have a size, each block is used within it and freed once, with its last size.
                unsafe {
                    let block = Allocator.alloc_zeroed(layout);
                    assert!(!block.is_null() && block.addr().is_multiple_of(align), "{layout:?}");
                    assert!(std::slice::from_raw_parts(block, bytes).iter().all(|byte| *byte == 0), "{layout:?}");
                    block.write_bytes(7, bytes);
                    let grown = Allocator.realloc(block, layout, bytes * 3);
                    assert!(grown.addr().is_multiple_of(align), "{layout:?} grown");
                    let layout = Layout::from_size_align(bytes * 3, align).unwrap();
                    let shrunk = Allocator.realloc(grown, layout, bytes.div_ceil(2));
                    assert!(shrunk.addr().is_multiple_of(align), "{layout:?} shrunk");
                    assert!(std::slice::from_raw_parts(shrunk, bytes.div_ceil(2)).iter().all(|byte| *byte == 7), "{layout:?}");
                    Allocator.dealloc(shrunk, Layout::from_size_align(bytes.div_ceil(2), align).unwrap());
                    let block = Allocator.alloc(Layout::from_size_align(bytes, align).unwrap());
                    assert!(block.addr().is_multiple_of(align), "{layout:?}");
                    Allocator.dealloc(block, Layout::from_size_align(bytes, align).unwrap());
                }
            }
        }
    }
}
