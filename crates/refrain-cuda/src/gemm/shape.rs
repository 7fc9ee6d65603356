//! What a product of a shape needs, checked and told.

use refrain_device::{GemmOperands, GemmShape, GemmType};

/// Best alignment of operands, bytes, that an algorithm is chosen for. No algorithm asks for more.
pub(super) const ALIGNMENT: u32 = 16;

/// What every operand is aligned to, bytes, up to [`ALIGNMENT`].
pub(super) fn alignment(operands: &GemmOperands) -> u32 {
    let all = operands.x.0 | operands.weight.0 | operands.out.0 | u64::from(ALIGNMENT);
    1 << all.trailing_zeros()
}

/// Whether a shape makes sense; an error says what doesn't.
pub(super) fn check(shape: &GemmShape) -> Result<(), String> {
    let GemmShape { n, k, x_stride, out_stride, input, output, .. } = *shape;
    if k == 0 {
        return Err("k is 0".to_owned());
    }
    if x_stride < k || out_stride < n {
        return Err(format!("rows overlap: strides {x_stride} and {out_stride}, at least {k} and {n} are needed"));
    }
    if output != input && output != GemmType::F32 {
        return Err(format!("{input:?} can become {input:?} or F32, not {output:?}"));
    }
    Ok(())
}

pub(super) fn describe(shape: &GemmShape) -> String {
    let GemmShape { m, n, k, x_stride, out_stride, input, output } = shape;
    format!(
        "out[{m}, {n}] {output:?} = x[{m}, {k}] weight[{n}, {k}]^T {input:?}, row strides {x_stride} and {out_stride}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use refrain_device::DevicePtr;

    const SHAPE: GemmShape =
        GemmShape { m: 3, n: 64, k: 32, x_stride: 32, out_stride: 64, input: GemmType::Bf16, output: GemmType::Bf16 };

    #[test]
    fn shapes_that_make_no_sense_are_refused() {
        check(&SHAPE).unwrap();
        check(&GemmShape { x_stride: 40, out_stride: 100, output: GemmType::F32, ..SHAPE }).unwrap();
        assert!(check(&GemmShape { k: 0, ..SHAPE }).unwrap_err().contains("k is 0"));
        assert!(check(&GemmShape { x_stride: 31, ..SHAPE }).unwrap_err().contains("strides 31 and 64"));
        assert!(check(&GemmShape { out_stride: 63, ..SHAPE }).is_err());
        assert!(check(&GemmShape { output: GemmType::F16, ..SHAPE }).unwrap_err().contains("Bf16 or F32, not F16"));
    }

    #[test]
    fn the_least_aligned_operand_counts() {
        let operands = |x: u64, weight: u64, out: u64| GemmOperands {
            x: DevicePtr(x),
            weight: DevicePtr(weight),
            out: DevicePtr(out),
            workspace: DevicePtr(0),
            workspace_bytes: 0,
        };
        assert_eq!(alignment(&operands(0x1000, 0x2000, 0x3000)), 16);
        assert_eq!(alignment(&operands(0x1000, 0x2008, 0x3000)), 8);
        assert_eq!(alignment(&operands(0x1002, 0x2008, 0x3000)), 2);
    }

    #[test]
    fn errors_name_the_product() {
        let text = describe(&SHAPE);
        assert_eq!(text, "out[3, 64] Bf16 = x[3, 32] weight[64, 32]^T Bf16, row strides 32 and 64");
    }
}
