//! A model as a straight list of ops on named tensors: builder, passes, costs, memory plan, text form
