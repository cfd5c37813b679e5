# For Packer 1.7 and later, which fetch their plugins with `packer init`; Packer 1.6 has them built in and refuses this block.
packer {
  required_plugins {
    docker = {
      source  = "github.com/hashicorp/docker"
      version = ">= 1.0.10"
    }
    ansible = {
      source  = "github.com/hashicorp/ansible"
      version = ">= 1.1.1"
    }
  }
}
