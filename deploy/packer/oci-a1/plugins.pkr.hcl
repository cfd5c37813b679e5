# For Packer 1.7 and later, which fetch their plugins with `packer init`. use_proxy and shape_config need these versions too.
packer {
  required_plugins {
    oracle = {
      source  = "github.com/hashicorp/oracle"
      version = ">= 1.0.3"
    }
    ansible = {
      source  = "github.com/hashicorp/ansible"
      version = ">= 1.1.1"
    }
  }
}
