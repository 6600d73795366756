//! Sets of integers as sorted, disjoint ranges that do not touch: one form for each set.

use std::fmt::Debug;

/// An unsigned integer that ranges are made of.
pub trait Point: Copy + Ord + Debug + std::hash::Hash {
    /// The lowest value.
    const MIN: Self;
    /// The highest value.
    const MAX: Self;
    /// The next value; never called on `MAX`.
    fn next(self) -> Self;
    /// The value before; never called on `MIN`.
    fn prev(self) -> Self;
}

macro_rules! point {
    ($($int:ty),*) => {$(
        impl Point for $int {
            const MIN: Self = <$int>::MIN;
            const MAX: Self = <$int>::MAX;
            fn next(self) -> Self { self + 1 }
            fn prev(self) -> Self { self - 1 }
        }
    )*};
}
point!(u16, u32, u128);

/// A set of integers: sorted inclusive ranges with gaps between them, hence disjoint,
/// minimal, and equal exactly when the sets are.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RangeSet<T>(Vec<(T, T)>);

impl<T> Default for RangeSet<T> {
    fn default() -> Self {
        RangeSet(Vec::new())
    }
}

impl<T: Point> RangeSet<T> {
    /// Everything.
    pub fn all() -> Self {
        RangeSet(vec![(T::MIN, T::MAX)])
    }

    /// The union of ranges in any order, which may overlap. Each is (first, last), first <= last.
    pub fn from_ranges(ranges: impl IntoIterator<Item = (T, T)>) -> Self {
        let mut sorted: Vec<(T, T)> = ranges.into_iter().collect();
        sorted.sort_unstable();
        let mut out: Vec<(T, T)> = Vec::with_capacity(sorted.len());
        for (first, last) in sorted {
            debug_assert!(first <= last);
            match out.last_mut() {
                // overlapping, or touching: [1,2] and [3,4] are [1,4]
                Some(prev) if prev.1 == T::MAX || first <= prev.1.next() => prev.1 = prev.1.max(last),
                _ => out.push((first, last)),
            }
        }
        RangeSet(out)
    }

    /// What is in `self` and not in `other`.
    pub fn minus(&self, other: &Self) -> Self {
        let mut out = Vec::with_capacity(self.0.len() + other.0.len());
        let mut holes = other.0.iter().peekable();
        for &(first, last) in &self.0 {
            let mut from = Some(first);
            while let Some(&&(hole_first, hole_last)) = holes.peek() {
                let Some(start) = from else { break };
                if hole_first > last {
                    break;
                }
                if hole_last >= start {
                    if hole_first > start {
                        out.push((start, hole_first.prev()));
                    }
                    from = (hole_last < last).then(|| hole_last.next());
                    if from.is_none() {
                        break; // the hole may reach into the next range as well
                    }
                }
                holes.next();
            }
            if let Some(start) = from {
                out.push((start, last));
            }
        }
        RangeSet(out)
    }

    /// Whether the value is in the set.
    pub fn contains(&self, value: T) -> bool {
        let after = self.0.partition_point(|r| r.0 <= value);
        after > 0 && self.0[after - 1].1 >= value
    }

    /// Whether all of `other` is in the set.
    pub fn covers(&self, other: &Self) -> bool {
        other.minus(self).is_empty()
    }

    /// Whether the set has no values.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the set has all values.
    pub fn is_all(&self) -> bool {
        self.0.as_slice() == [(T::MIN, T::MAX)]
    }

    /// The ranges, in order.
    pub fn ranges(&self) -> &[(T, T)] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ranges() -> impl Strategy<Value = Vec<(u16, u16)>> {
        // near both ends of the type, where next() and prev() go wrong
        let point = prop_oneof![0u16..40, (u16::MAX - 40)..=u16::MAX];
        proptest::collection::vec((point.clone(), point).prop_map(|(a, b)| (a.min(b), a.max(b))), 0..8)
    }

    fn naive(ranges: &[(u16, u16)], v: u16) -> bool {
        ranges.iter().any(|r| r.0 <= v && v <= r.1)
    }

    proptest! {
        #[test]
        fn union_and_difference_equal_the_naive_sets(a in ranges(), b in ranges()) {
            let (sa, sb) = (RangeSet::from_ranges(a.clone()), RangeSet::from_ranges(b.clone()));
            let diff = sa.minus(&sb);
            for v in (0..60).chain(u16::MAX - 60..=u16::MAX) {
                prop_assert_eq!(sa.contains(v), naive(&a, v));
                prop_assert_eq!(diff.contains(v), naive(&a, v) && !naive(&b, v));
            }
            prop_assert_eq!(sb.covers(&sa), diff.is_empty());
            for set in [&sa, &diff] {
                for pair in set.ranges().windows(2) {
                    // disjoint and minimal: a gap of at least one value between neighbours
                    prop_assert!(pair[0].1 < pair[1].0 && pair[0].1 + 1 < pair[1].0);
                }
            }
        }
    }
}
