import torch
class S:
    def __enter__(self): self.held=[]; return self
    def __exit__(self,*a): self.held=None
    def tensor(self, shape, dtype):
        return torch.empty(shape, dtype=dtype)
    def bytes(self, n):
        t=torch.empty(n+64,dtype=torch.uint8); self.held.append(t)
        return (t.data_ptr()+63)//64*64
class A:
    def session(self): return S()
ARENA=A()
